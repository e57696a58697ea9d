"""The fields that OpenAI's clients send, and clients of servers that speak its dialect, and that no route honours."""

from __future__ import annotations

from server.api.fields import GRAMMARS, KnownFields

_LENGTH = "use `max_tokens`"

OPENAI = KnownFields(
    binding=GRAMMARS
    | {
        "functions": "",
        "function_call": "",
        "format": "use `response_format`",
        "audio": "",
        "n_predict": _LENGTH,
        "num_predict": _LENGTH,
        "max_new_tokens": _LENGTH,
        "max_output_tokens": _LENGTH,
        "stop_sequences": "use `stop`",
        "images": "",
    },
    noted={
        # Templates and thinking.
        "add_generation_prompt": True,
        "chat_template": None,
        "continue_final_message": None,
        "documents": None,
        "include_reasoning": True,
        "reasoning_format": "none",
        # Sampling by other names, or that llama.cpp has not.
        "best_of": 1,
        "early_stopping": None,
        "echo": None,
        "length_penalty": 1.0,
        "repetition_penalty": 1.0,
        "tfs_z": 1.0,
        "top_a": None,
        "use_beam_search": None,
        # More about tokens.
        "add_special_tokens": True,
        "include_stop_str_in_output": None,
        "n_probs": None,
        "prompt_logprobs": None,
        "return_token_ids": None,
        "return_tokens_as_token_ids": None,
        "return_progress": None,
        "timings_per_token": None,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        # Settings of the model, and what a service does beside answering.
        "keep_alive": None,
        "num_ctx": None,
        "options": None,
        "metadata": None,
        "moderation": None,
        "prompt_cache_options": None,
        "prompt_cache_retention": "in_memory",
        "safety_identifier": None,
        "store": None,
        "user": None,
        "verbosity": "medium",
        "web_search_options": None,
        # Embeddings and rankings.
        "embedding_types": ["float"],
        "input_type": None,
        "instruction": None,
        "late_chunking": None,
        "max_chunks_per_doc": None,
        "max_tokens_per_doc": None,
        "normalize": True,
        "normalized": True,
        "priority": None,
        "prompt_name": None,
        "rank_fields": None,
        "task": None,
        "truncate": None,
        "truncate_prompt_tokens": None,
    },
    # How a server keeps prompts: here every one is looked up in the cache, whatever its key.
    idle=frozenset(
        {
            "cache_prompt",
            "id_slot",
            "prompt_cache_key",
            "request_id",
            # An answer as clients send it back.
            "messages[].tool_calls[].index",
            "messages[].tool_calls[].type",
            # A schema's own name and words; answers are held to it whether it is `strict` or not.
            "response_format.json_schema.description",
            "response_format.json_schema.name",
            "response_format.json_schema.strict",
        }
    ),
)
