"""Completion in a shell: names of models, folders and files of them, levels. The shells' scripts are click's own, but
for bash, which takes words apart at colons.
"""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

# Bash cuts words at colons: its words are joined again where the line has no space between them, and a completion is
# given from the last colon on. Folders end in a slash, so that Tab goes on into them.
_BASH = r"""
%(complete_func)s() {
    local IFS=$'\n' rest=$COMP_LINE trimmed word words=() cword=0 current head type value path item
    for ((item = 0; item < ${#COMP_WORDS[@]}; item++)); do
        word=${COMP_WORDS[item]}
        trimmed=${rest#"${rest%%%%[![:space:]]*}"}
        if [[ $item -gt 0 && $trimmed == "$rest" && -n $rest ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        rest=${trimmed#"$word"}
        ((item == COMP_CWORD)) && cword=$((${#words[@]} - 1))
    done
    current=${words[cword]}
    head=
    [[ $COMP_WORDBREAKS == *:* ]] && head=${current%%"${current##*:}"}
    COMPREPLY=()
    while IFS=, read -r type value; do
        if [[ $type == plain ]]; then
            COMPREPLY+=("${value#"$head"}")
        elif [[ $type == dir || $type == file ]]; then
            for path in $(compgen -f -- "$value"); do
                item=${path/#\~/$HOME}
                if [[ -d $item ]]; then path+=/
                elif [[ $type == dir || ${path,,} != *.gguf ]]; then continue
                fi
                item=$(printf %%q "${path#"~"}")
                [[ $path == "~"* ]] && item="~$item"
                COMPREPLY+=("${item#"$head"}")
            done
        fi
    done < <(env COMP_WORDS="${words[*]}" COMP_CWORD="$cword" %(complete_var)s=bash_complete "$1")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[/:] ]] && compopt -o nospace
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """Bash's completion, where a name has a colon in it."""

    source_template = _BASH


def register() -> None:
    """Make click use our script for bash."""
    add_completion_class(Bash)


def complete_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of models that are here, from a daemon that runs; none is started."""
    return [CompletionItem(name) for name in _here() if name.startswith(incomplete)]


def complete_sources(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of models, folders and GGUF files; behind a colon, levels."""
    from registry.names import is_path

    name, colon, level = incomplete.rpartition(":")
    if colon and "/" not in level:
        here = [each for each in _here() if each.startswith(incomplete)]
        made = [f"{name}:{each}" for each in _levels(level)]
        return [CompletionItem(each) for each in dict.fromkeys([*here, *made])]
    items = [] if is_path(incomplete) else complete_names(ctx, parameter, incomplete)
    if "demo".startswith(incomplete):
        items.append(CompletionItem("demo"))
    return [*items, CompletionItem(incomplete, type="file")]


def complete_levels(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Levels by name."""
    return [CompletionItem(level) for level in _levels(incomplete)]


def complete_commands(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Commands of lm."""
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    return [CompletionItem(name) for name in root.list_commands(ctx) if name.startswith(incomplete)]


def complete_folders(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Folders."""
    return [CompletionItem(incomplete, type="dir")]


def _here() -> list[str]:
    from cli.client import Client
    from cli.errors import Failure

    try:
        rows: list[dict[str, Any]] = Client(start=False).ask("GET", "/api/tags")["models"]
    except Failure:
        return []
    return [row["name"] for row in rows if "alias" not in row]


def _levels(begun: str) -> list[str]:
    """The levels that lm makes, and `auto`, as far as they begin with a text in upper case or lower."""
    from quant.levels.recipes import LEVELS
    from registry.words import AUTO

    return [level for level in (*LEVELS, AUTO) if level.lower().startswith(begun.lower())]
