"""A family of models, described as data: the page that every module in `families/` is written against.

A family lists every tensor that its source may have, with its shape and the tensors that the GGUF file gets from it.
A tensor of the source that is not listed is an error, and so is one that is missing or has another shape: nothing is
dropped and nothing is guessed (`placing.py`).

To add a family, write four things, here for a model with one fused matrix and with experts in some layers:

    @dataclass(frozen=True, kw_only=True)
    class ToySizes(Sizes):                        # 1. The numbers by which the table names its shapes.
        feed_forward: int
        experts: int
        routed: Layers                            # The layers that have experts.

    def read_sizes(config: ModelConfig) -> ToySizes:  # 2. Where `config.json` says them.
        layers = count_layers(config)
        return ToySizes(
            vocabulary=config.count("vocab_size"),
            width=config.count("hidden_size"),
            layers=layers,
            feed_forward=config.count("intermediate_size"),
            experts=config.count("num_experts"),
            routed=frozenset(range(1, layers)),
        )

    def describe(config: ModelConfig, sizes: ToySizes) -> dict[str, Any]:
        # 3. The GGUF entries, without the architecture (`toy.`) in front.
        return {"block_count": sizes.layers, "embedding_length": sizes.width, "expert_count": sizes.experts}

    TOY = Family(                                 # 4. The table of tensors.
        classes=("ToyForCausalLM",),
        architecture="toy",
        sizes=ToySizes,
        read_sizes=read_sizes,
        describe=describe,
        tensors=(
            tensor("embed_tokens.weight", "token_embd.weight", "vocabulary", "width"),
            tensor("norm.weight", "output_norm.weight", "width", transform=lambda sizes: AddOne()),
            Known(                                # One matrix with the rows of two: gate first, up second.
                "layers.{}.mlp.gate_up.weight",
                (Target("blk.{}.ffn_gate.weight"), Target("blk.{}.ffn_up.weight")),
                (Times(2, "feed_forward"), "width"),
            ),
            tensor(                               # A matrix for each expert of some layers, stacked to one tensor.
                "layers.{}.experts.[].down.weight", "blk.{}.ffn_down_exps.weight", "width", "feed_forward",
                layers="routed",
            ),
        ),
    )

`{}` stands for the layer's number, `[]` for the expert's, `{1}` for the number of a block behind the last layer. A
shape names fields of the family's `Sizes`; a misspelt name, as `"feed_foward"`, is an error as soon as the module is
imported. `families/decoder.py` has the tables and sizes that most decoders share (`decoder.STANDARD`,
`decoder.linear`, `decoder.read_sizes`). List the new family in `families/table.py`, and give it a row below
`tests/quant/zoo/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Self, TypeVar, get_type_hints

from quant.convert.config import ModelConfig
from quant.errors import UnsupportedModel
from quant.gguf.check import MAX_BLOCKS
from quant.plan import Files, Reversible, TensorPlan
from quant.safetensors import Entry

# The types of safetensors that hold weights as they are; others belong to quantized models.
UNQUANTIZED = ("F32", "F16", "BF16", "F64")
# Said of models whose YaRN does not round (GPT-OSS), while llama.cpp's does, as the method's own code.
ROUNDED = "llama.cpp rounds the ends of its YaRN's ramp, which its makers do not, so that answers differ a little"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

Layers = frozenset[int]
"""Numbers of layers, from 0 on."""


@dataclass(frozen=True)
class Times:
    """A multiple of a size in a shape: gate and up together have `Times(2, "feed_forward")` rows."""

    factor: int
    size: str


Length = int | str | Times
"""A length in a shape: a number, a size by its name, or a multiple of one."""
Shape = tuple[Length, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers on which the shapes of a family's tensors depend. A family adds fields in a class of its own.

    A field of the type `int` is a length, or a number of heads or experts, which shapes name; so is a property. A field
    of the type `Layers` is a set of layers, which `Known.layers` names. `token_types` is how many
    kinds of tokens an encoder tells apart (2 for a first and a second text), 0 for other models. `predicting` are the
    blocks behind the last layer that predict further tokens, numbered on from it (`quant/convert/heads.py`).
    """

    vocabulary: int
    width: int
    layers: int
    token_types: int = 0
    predicting: Layers = frozenset()

    def at(self, layer: int) -> Self:
        """The sizes of one layer; a family whose layers have sizes of their own has them here."""
        return self

    def length(self, length: Length) -> int:
        """A length as a number."""
        if isinstance(length, Times):
            return length.factor * self.length(length.size)
        return length if isinstance(length, int) else int(getattr(self, length))

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """A shape as numbers."""
        return tuple(map(self.length, shape))

    def numbers(self, layers: str | None) -> list[int]:
        """The numbers of the layers in a set, ascending; None is the set of all layers."""
        return list(range(self.layers)) if layers is None else sorted(getattr(self, layers))


S = TypeVar("S", bound=Sizes)
MakeTransform = Callable[[Any], Reversible | None]
"""Makes a change of values for a model, from the sizes of its family; None where these values stay as they are."""


@dataclass(frozen=True)
class Target:
    """A tensor of the GGUF file: its name, its shape where that is not the source's, and how its values are changed."""

    name: str
    shape: Shape = ()
    transform: MakeTransform | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """A row of a family's table: one tensor of the source, or one of every layer and expert.

    `source` is its name without the family's prefix, `shape` its shape there. It becomes one tensor for each of
    `targets`. Several targets without transforms share the rows equally, in this order. Several with transforms each
    get the whole source, and the transform takes the target's values from it. A source without a target is left behind,
    because no engine reads it.

    `layers` names the set of layers that have the tensor, None for all; one without `{}` in its name is there once, if
    that set is not empty. One that is not `required` is in all these layers or in none. `switch` names a setting that
    takes the tensor away where it is false; the engine needs it nevertheless, and gets zeros. With `zeros` it gets
    them wherever the model has no such tensor.

    `stack` names the size that tells how many sources `[]` stands for; `each` are their names where these are no
    numbers. `skip` is how many of the first rows stay behind, `keep` how many do not, 0 for all of them. `choice` names
    one of several ways in which the same values are stored, of which a model has one.
    """

    source: str
    targets: tuple[Target, ...]
    shape: Shape
    required: bool = True
    layers: str | None = None
    stack: str = "experts"
    skip: Length = 0
    keep: Length = 0
    zeros: bool = False
    switch: str = ""
    choice: str = ""
    each: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The name of the only target, "" where there is none or several."""
        return self.targets[0].name if len(self.targets) == 1 else ""

    @property
    def stacked(self) -> bool:
        """Whether it stands for several sources that become one tensor."""
        return "[]" in self.source

    def transformed(self, transform: MakeTransform) -> Known:
        """The same row with its only target changed so."""
        (target,) = self.targets
        return replace(self, targets=(replace(target, transform=transform),))

    def lengths(self) -> Iterator[str]:
        """The names of all sizes that the row uses."""
        shapes = (self.shape, (self.skip, self.keep), *(target.shape for target in self.targets))
        for length in (length for shape in shapes for length in shape):
            if not isinstance(length, int):
                yield length.size if isinstance(length, Times) else length
        if self.stacked and not self.each:
            yield self.stack

    def stacks(self, sizes: Sizes) -> tuple[str, ...]:
        """The names that `[]` stands for, none of another row."""
        numbers = range(sizes.length(self.stack)) if self.stacked and not self.each else ()
        return self.each or tuple(map(str, numbers))


def tensor(
    source: str,
    target: str,
    *shape: Length,
    required: bool = True,
    layers: str | None = None,
    transform: MakeTransform | None = None,
    becomes: Shape = (),
) -> Known:
    """A row with one target; `becomes` is the target's shape where it is another."""
    return Known(source, (Target(target, becomes, transform),), shape, required, layers)


def in_layers(layers: str, *rows: Known) -> tuple[Known, ...]:
    """The rows for one set of layers alone."""
    return tuple(replace(known, layers=layers) for known in rows)


def choices(**ways: tuple[Known, ...]) -> tuple[Known, ...]:
    """The rows of several ways of storing the same values, each by its name; a model has one of them."""
    return tuple(replace(known, choice=name) for name, rows in ways.items() for known in rows)


def switched(switch: str, *rows: Known) -> tuple[Known, ...]:
    """The rows, of which the setting `switch` takes the biases away."""
    return tuple(replace(known, switch=switch) if known.source.endswith(".bias") else known for known in rows)


def count_layers(config: ModelConfig, key: str = "num_hidden_layers") -> int:
    """The number of layers under `key`; raises UnsupportedModel for more than any engine has."""
    layers = config.count(key)
    if layers > MAX_BLOCKS:
        raise UnsupportedModel(f"the model has {layers} layers, and at most {MAX_BLOCKS} can be run")
    return layers


@dataclass(frozen=True)
class Family(Generic[S]):
    """Models that are converted alike.

    - `classes`: the names of the models' classes, as `architectures` in `config.json` has them.
    - `architecture`: llama.cpp's name, which stands in front of the entries.
    - `tensors`: the table of tensors.
    - `sizes`, `read_sizes`: the class of the sizes that the table names, and how they are read.
    - `describe`: the GGUF entries of the model, without the architecture in front.
    - `computed`: tensors that have no source, as tables of rotary frequencies.
    - `measured`: GGUF entries, by their whole names, that stand in tensors of single values.
    - `picked`: tensors of so few values of the source that they are read while planning.
    - `told`: the other way round from `measured`: tensors of the source, without the prefix, that entries hold.
    - `prefix`: matches what the source's names may have in front of those in `tensors`.
    - `unused`: matches names, without the prefix, of tensors that no engine needs.
    - `activations`: the activation functions that the engine has for the family.
    - `encoder`: it makes embeddings and no text, of tokens that become one vector by `pooling` (llama.cpp's number)
      where no file says how. `ranks`: it makes a score of two texts.
    - `tied`: whether the embedding serves as the output where `config.json` does not say.
    - `instead`: another family for models of the same classes that are built otherwise.

    Raises TypeError where the table names a size or a set of layers that `sizes` does not have.
    """

    classes: tuple[str, ...]
    architecture: str
    tensors: tuple[Known, ...]
    sizes: type[S]
    read_sizes: Callable[[ModelConfig], S]
    describe: Callable[[ModelConfig, S], dict[str, Any]]
    computed: Callable[[ModelConfig, S], tuple[TensorPlan, ...]] = lambda config, sizes: ()
    measured: Callable[[Files, Iterable[Entry], S], dict[str, Any]] = lambda files, entries, sizes: {}
    picked: Callable[[Files, Iterable[Entry], ModelConfig], tuple[TensorPlan, ...]] = lambda files, entries, config: ()
    told: Callable[[Mapping[str, Any], S], dict[str, float]] = lambda entries, sizes: {}
    prefix: str = r"(model\.)?"
    unused: str = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    activations: tuple[str, ...] = ("silu",)
    encoder: bool = False
    pooling: int = 1
    ranks: bool = False
    tied: bool = False
    instead: Callable[[ModelConfig], Family[Any] | None] = lambda config: None

    def __post_init__(self) -> None:
        lengths, sets = _names_in(self.sizes)
        for known in self.tensors:
            wrong = [f"the size `{name}`" for name in known.lengths() if name not in lengths]
            if known.layers is not None and known.layers not in sets:
                wrong.append(f"the layers `{known.layers}`")
            if wrong:
                raise TypeError(f"`{self.architecture}`: `{known.source}` names {wrong[0]}, not in {self.sizes}")


def _names_in(sizes: type[Sizes]) -> tuple[frozenset[str], frozenset[str]]:
    """The names of a class's lengths and of its sets of layers, be they fields or properties."""
    types = get_type_hints(sizes)
    names = [field.name for field in fields(sizes)]
    for each in sizes.__mro__:
        for name, value in vars(each).items():
            if isinstance(value, property) and value.fget:
                names.append(name)
                types[name] = get_type_hints(value.fget).get("return")
    return (
        frozenset(name for name in names if types[name] is int),
        frozenset(name for name in names if types[name] == Layers),
    )


def headless(family: Family[S]) -> Family[S]:
    """The family without its output over the vocabulary, which embeddings have no use for and often leave out."""
    tensors = tuple(known for known in family.tensors if known.target not in (HEAD, "output.bias"))
    return replace(family, tensors=tensors, unused=rf"{family.unused}|lm_head\.(weight|bias)")
