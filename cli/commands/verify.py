"""`lm verify`: blobs against their digests, or a model against its original weights, as transformers runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click

from cli import console
from cli.carrying import show
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import reference
from cli.signing import ask_signer
from runtime.units import size_text


@click.command()
@click.argument("name", required=False, shell_complete=complete_names)
@click.option(
    "--oracle", "folder", metavar="FOLDER", help="Compare with the original in FOLDER, as transformers runs it."
)
@click.option("--deep", "source", metavar="SOURCE", help="Make the tensors of NAME anew from SOURCE, and compare.")
@click.option(
    "--key", "keys", multiple=True, metavar="PUB.pem", help="A public key, or a certificate; several may come."
)
@click.option("--identity", metavar="WHO", help="An identity of Sigstore that has to have signed, such as an address.")
@click.option("--identity-provider", "provider", metavar="URL", help="Who vouched for the identity.")
@click.option("--trust-root", metavar="FILE", help="The `trusted_root.json` of that Sigstore; nobody is asked for it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(name: str | None, folder: str | None, source: str | None, as_json: bool, **inputs: Any) -> int:
    """Check that the blobs of a model, or of all models, still hash to their names; exit code 1 where one is hurt.

    Signatures are checked by every input that is given: --key, --identity with its provider and trust root, and the
    keys of this box's policy. It is 1 as well where no signature on a model counts by one of them. Nothing is asked of
    another machine.

    With --deep the model is quantized again from SOURCE, a folder or a name as `lm pull` takes it. Each tensor has to
    be the same, byte for byte: proof of the source that it was quantized from.

    With --oracle the probabilities of tokens are compared, and what each layer computes. Its own error is that behind
    the original's input, and may be as large as the rounding of its types explains; the drift has the errors of earlier
    layers in it. Without NAME it is the model that was made of FOLDER last. The exit code is 1 where they are not the
    same model.
    """
    if folder is not None:
        return _compare(folder, name, as_json)
    if source is not None:
        return _make_anew(source, name, as_json)
    task = _inputs(**inputs)
    last = show(
        Client().stream("/lm/verify", {"model": reference(name) if name else "", "signed": bool(task)}), quiet=as_json
    )
    _check_signatures(last["models"], task)
    faults = any(_faults(row) for row in last["models"])
    if as_json:
        console.as_json({key: last[key] for key in ("models", "hurt", "blobs", "bytes")})
        return 1 if last["hurt"] or faults else 0
    for row in last["models"]:
        if row["problem"]:
            console.complain(row["problem"], f"`lm rm {row['name']}` removes it, `lm pull` brings it in again")
        _tell_signatures(row)
    hurt = len(last["hurt"])
    whole = len(last["models"]) - hurt
    console.note(f"{size_text(last['bytes'])} in {last['blobs']} blobs; models whole: {whole}, hurt: {hurt}")
    return 1 if last["hurt"] or faults else 0


def _inputs(
    keys: tuple[str, ...], identity: str | None, provider: str | None, trust_root: str | None
) -> dict[str, Any]:
    """The inputs of checks of signatures; {} without any. Raises Failure for an identity without its trust root."""
    given = [each for each in (identity, provider, trust_root) if each is not None]
    if given and trust_root is None:
        raise Failure(
            "an identity is checked by a trust root, and none is given",
            "`--trust-root trusted_root.json`: lm asks nobody for it, and trusts none by itself",
            "usage",
        )
    if given and len(given) < 3:
        raise Failure(
            "`--identity`, `--identity-provider` and `--trust-root` go together", "give all three of them", "usage"
        )
    if not keys and not given:
        return {}
    task: dict[str, Any] = {"keys": list(keys)}
    return task | ({"identity": identity, "provider": provider, "trust_root": trust_root} if given else {})


def _check_signatures(rows: list[dict[str, Any]], task: dict[str, Any]) -> None:
    """Check the signatures of whole models by the inputs; each row gets its `checks`, and loses what is not for people.

    Raises Failure.
    """
    models = []
    for row in (each for each in rows if not each["problem"]):
        bundles = [found.pop("bundle") for found in row.get("signatures", []) if "bundle" in found]
        models.append({"name": row["name"], "files": row.pop("files", {}), "signatures": bundles})
    checked = ask_signer({"check": task | {"models": models}})["models"] if task and models else []
    checks = {each["name"]: each["checks"] for each in checked}
    for row in rows:
        row["checks"] = checks.get(row["name"], [])


def _faults(row: dict[str, Any]) -> bool:
    """Whether a signature that was asked for is missing, or one that is there is for other files."""
    missing = any(each["fault"] for each in row["checks"])
    return missing or bool(row.get("policy")) or any(each["fault"] for each in row.get("signatures", []))


def _tell_signatures(row: dict[str, Any]) -> None:
    """Tell which checks of a model's signatures passed."""
    for each in row["checks"]:
        if each["fault"]:
            console.complain(f"`{row['name']}` is not signed by {each['by']}: {each['fault']}", "")
        else:
            console.note(f"`{row['name']}` is signed by {each['by']}")
    for found in row.get("signatures", []):
        if found["fault"]:
            console.complain(f"`{row['name']}`: {found['fault']}", "")
        elif not row["checks"]:
            console.note(f"`{row['name']}` says to be signed by {found['signer']}; `--key PUB.pem` checks that")
    if row.get("policy"):
        console.complain(row["policy"], "`require_signature` in `policy.toml` names the keys")


def _make_anew(source: str, name: str | None, as_json: bool) -> int:
    """Compare with the tensors that the pass makes of the source now; the exit code. Raises Failure."""
    if name is None:
        raise Failure("`--deep` is for one model", "name it: `lm verify NAME --deep SOURCE`", "usage")
    client = Client()
    body = {"model": reference(name), "deep": reference(source)} | client.hub()
    last = show(client.stream("/lm/verify", body), quiet=as_json)
    if as_json:
        console.as_json({key: value for key, value in last.items() if key not in ("status", "phase")})
    elif last["same"]:
        console.note(f"all {last['tensors']} tensors of `{last['model']}` are those of `{last['source']}`")
    else:
        names = ", ".join(f"`{each}`" for each in last["different"][:3])
        text = f"{last['equal']} of {last['tensors']} tensors of `{last['model']}` are those of `{last['source']}`"
        why = f"`lm verify {last['model']}` says whether its file is hurt; another version of lm may quantize otherwise"
        console.complain(text, f"different: {names}{' and more' if last['equal'] + 3 < last['tensors'] else ''}; {why}")
    return 0 if last["same"] else 1


def _compare(folder: str, name: str | None, as_json: bool) -> int:
    """Compare with the original weights; the exit code."""
    arguments = [folder, *([reference(name)] if name else [])]
    with console.status("running both"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "server.verify", *arguments], capture_output=True, check=False
        )
    try:
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failure(f"the comparison ended: {errors[-1] if errors else 'it printed nothing'}", "try again") from None
    if "error" in report:
        raise Failure.of(report)
    if as_json:
        console.as_json(report)
        return done.returncode
    console.out(f"{report['model']} against {report['folder']}, {report['positions']} positions")
    console.out(f"  largest difference   {report['largest']:.4f} standard deviations")
    console.out(f"  KL divergence        {report['divergence']:.2e} on average, {report['worst']:.2e} at most")
    console.out(f"  same likeliest token {report['agreement']:.1%}")
    for stage in report["stages"]:
        console.out(_line(stage))
    sign = "≤" if report["divergence"] <= report["limit"] else ">"
    console.out(f"  verdict              {report['verdict']} ({report['divergence']:.2e} {sign} {report['limit']:.2e})")
    return done.returncode


def _line(stage: dict[str, Any]) -> str:
    """A layer's own error with its bound, and the drift up to here."""
    name, own, drift = stage["name"], stage["own"], stage["drift"]
    if own is None:
        return f"  {name:20} nothing to compare it with"
    sign = "≤" if own <= stage["bound"] else ">"
    further = "" if drift is None else f", drift {drift:.1e}"
    return f"  {name:20} own error {own:.1e} {sign} {stage['bound']:.1e}{further}"
