"""The floors of the house: which room may import which. A room imports from lower floors only.

Each line is a module or a package; the longest that fits a module is its room. Inside a room imports are free, as long
as they make no circle.
"""

FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "quant": (
        ("quant.errors",),
        ("quant.types", "quant.notes", "quant.pointers"),
        ("quant.gguf", "quant.kernels.vectors"),
        ("quant.kernels.formats", "quant.plan"),
        ("quant.safetensors",),
        ("quant.kernels.layouts", "quant.kernels.search", "quant.levels"),
        ("quant.kernels",),
        ("quant.kernels.blocks",),
        ("quant",),
        ("quant.stream",),
        ("quant.convert",),
        ("quant.convert.tokenizer",),
        ("quant.convert.families", "quant.convert.gguf"),
        ("quant.convert.planning",),
        ("quant.convert.adapters",),
    ),
    "registry": (
        ("registry.errors",),
        ("registry.names", "registry.digest", "registry.sha256", "registry.modelfile"),
        ("registry.store", "registry.net"),
        ("registry.sources",),
        ("registry.targets", "registry.bundles"),
        ("registry",),
    ),
    "runtime": (
        (
            "runtime.errors",
            "runtime.defaults",
            "runtime.units",
            "runtime.options",
            "runtime.conversation",
            "runtime.processor",
            "runtime.small_files",
        ),
        ("runtime.infilling",),
        ("runtime.messages", "runtime.child"),
        ("runtime.answers",),
        ("runtime.text",),
        ("runtime.llama",),
        ("runtime.machine", "runtime.cache", "runtime.grammar", "runtime.drafts"),
        ("runtime.engine",),
        ("runtime",),
    ),
    "server": (
        ("server.values",),
        ("server.settings",),
        ("server.config", "server.settings_file"),
        ("server.errors", "server.keys"),
        ("server.http", "server.children", "server.library", "server.logins"),
        ("server.access", "server.loaded", "server.doctor", "server.verify"),
        ("server.pulls",),
        ("server.advice", "server.carrying", "server.creates"),
        ("server.services",),
        ("server.api",),
        ("server.api.ollama", "server.api.openai", "server.api.anthropic", "server.api.llama", "server.api.lm"),
        ("server.routes",),
        ("server.app", "server.sockets"),
        ("server",),
    ),
    "cli": (
        ("cli",),
        ("cli.commands",),
        ("cli.main",),
        ("cli.start",),
    ),
}
