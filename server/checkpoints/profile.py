"""A model's facts, read from a profile.toml: its checkpoint, the tokens that decide, its context, engine arguments.

Operators write profiles too, so reading is strict: an unknown key or a wrong type stops the start with a message that
names the file and the key. docs/models.md explains every key.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveInt,
    TypeAdapter,
)

import model_config
from server.checkpoints.cpu import fastest_dtype
from server.checkpoints.files import STRICT, check, parse, read_text
from server.checkpoints.taxonomy import load_taxonomy
from server.domain.errors import OperatorError
from server.domain.taxonomy import Taxonomy
from server.families.base import family_named

DEFAULT_PROFILE = "llama-guard-4-12b"
SHIPPED = Path(model_config.__file__).parent
"""The folder of the profiles that come with the server, one folder for each model."""

ENGINE_KEYS_OF_THE_PROFILE = {
    "model": "model",
    "tokenizer": "model",
    "revision": "revision",
    "served_model_name": "served_as",
    "max_model_len": "context_tokens",
    "limit_mm_per_prompt": "image_limit",
    "language_model_only": "images",
}
"""Arguments of vLLM that have their own key in a profile, and that key."""

VOCABULARY_SIZE = "vocabulary_size"
"""The key of [tokens] that is not a token."""

FASTEST = "fastest"
"""As `engine.dtype` it means the result of `fastest_dtype` for this machine's CPU."""


@dataclass(frozen=True, slots=True)
class Network:
    """The facts of a network that are needed to compute its memory.

    `text_linear_parameters` are those of the text decoder's linear layers, which quantisation shrinks;
    `text_other_parameters` its embeddings, output head and norms. `text_linear_bytes` is set when the checkpoint itself
    stores the linear layers quantised: their size as stored.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    layers: NonNegativeInt
    kv_heads: NonNegativeInt
    head_dim: NonNegativeInt
    text_linear_parameters: NonNegativeInt
    text_other_parameters: NonNegativeInt
    vision_parameters: NonNegativeInt
    text_linear_bytes: NonNegativeInt | None = None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


def _taxonomy_of(file: Any) -> Taxonomy:
    if not isinstance(file, str):
        raise ValueError("must be the path of a file")
    return load_taxonomy(Path(_printable(file)))


def _template_of(file: str) -> str:
    return read_text(Path(_printable(file)))


def _engine(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, own in ENGINE_KEYS_OF_THE_PROFILE.items():
        if key in arguments:
            raise ValueError(f"{key} is not set here: set {own} instead")
    if arguments.get("dtype") == FASTEST:
        arguments = {**arguments, "dtype": fastest_dtype()}
    return MappingProxyType(dict(arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model as it is to be served. Its fields are the keys of a profile.toml.

    `name` includes the variant ("llama-guard-4-12b:48gb"). `model` is the hub's id, or the path of a local folder, in
    which case `is_local` holds. `served_as` are the names that requests may use; the first stands in replies.
    `stand_in` marks a model that is no moderator. `images` says whether pictures go to the model, `sees_images` whether
    it then knows what is on them. `image_limit` counts the images of one request, 0 when `images` is false. `taxonomy`
    and `chat_template` (the key `template`) are what the files hold that the profile names. `family` says how the model
    is asked (server.families). `tokens` are ids of words by the family's keys for them, and the size of the vocabulary:
    what the checkpoint is held against. `engine` holds keyword arguments of vLLM's AsyncEngineArgs beyond those that
    follow from the other fields. `network` is None where only the
    checkpoint tells.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    description: str = ""
    model: Annotated[str, AfterValidator(_printable)]
    revision: str | None = None
    served_as: Annotated[tuple[str, ...], Field(min_length=1)]
    stand_in: bool = False
    runs_on_cpu: bool = False
    context_tokens: PositiveInt
    context_beyond_checkpoint: bool = False
    images: bool = True
    # Without this key the model sees nothing: a picture that nobody looked at must not be "safe".
    sees_images: bool = False
    image_limit: NonNegativeInt = 0
    taxonomy: Annotated[Taxonomy, PlainValidator(_taxonomy_of)]
    family: str = "llama_guard"
    chat_template: Annotated[str, Field(validation_alias="template"), AfterValidator(_template_of)] = ""
    tokens: Annotated[Mapping[str, NonNegativeInt], AfterValidator(MappingProxyType)]
    network: Network | None = None
    engine: Annotated[Mapping[str, Any], AfterValidator(_engine)] = field(default_factory=dict)

    @property
    def vocabulary_size(self) -> int:
        return self.tokens[VOCABULARY_SIZE]

    @property
    def is_local(self) -> bool:
        return Path(self.model).is_absolute()


class _Layers(BaseModel):
    """The keys of one file that choose its variants and the other files of the profile."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    extends: Annotated[str, AfterValidator(_printable)] | None = None
    default_variant: str | None = None
    variants: dict[str, dict[str, Any]] = {}


_PROFILE, _LAYERS = TypeAdapter(Profile), TypeAdapter(_Layers)


def load_profile(spec: str) -> Profile:
    """Read the profile that `spec` names.

    `spec` is a name in model_config/, or the path of a profile.toml or of its folder (a path contains a slash), with
    any number of variants after it: "llama-guard-4-12b", "llama-guard-4-12b:24gb:text-only", "./mine:small". Raises
    OperatorError if there is no such profile or variant, or if a file is not valid.
    """
    file, variants = _locate(spec)
    return _profile(_resolve(file, variants), file)


def variant_specs(spec: str) -> tuple[str, ...]:
    """Specs of all variants of the profile that `spec` names, in the file's order of preference, or the profile itself.

    Raises OperatorError like `load_profile`.
    """
    file, _ = _locate(spec)
    variants = check(_LAYERS, parse(file), file).variants
    base = file.parent.name if file.parent.parent == SHIPPED else str(file)
    return tuple(f"{base}:{variant}" for variant in variants) or (base,)


# --- From the spec to one merged table -------------------------------------------------------------------


def _locate(spec: str) -> tuple[Path, list[str]]:
    name, *variants = spec.split(":")
    if "/" not in name:
        file = SHIPPED / name / "profile.toml"
        if not file.is_file():
            known = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/profile.toml")))
            raise OperatorError(f"There is no profile {name!r}. Use one of {known}, or the path of a folder.")
        return file, variants
    file = Path(name).expanduser().resolve()
    if file.is_dir():
        file /= "profile.toml"
    if not file.is_file():
        raise OperatorError(f"{file}: no such file.")
    return file, variants


def _resolve(file: Path, variants: Iterable[str], *, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of `file`, those that it extends and its variants as one table, with absolute paths."""
    if file in extended_by:
        raise OperatorError(f"{file}: extends: the profile extends itself, directly or through others.")
    table = parse(file)
    layers = check(_LAYERS, table, file)
    own = {key: value for key, value in table.items() if key not in ("extends", "default_variant", "variants")}
    table = _with_absolute_paths(own, file.parent)
    if layers.extends is not None:
        # A path is meant as seen from the file that holds it.
        name, *base_variants = layers.extends.split(":")
        try:
            base_file, _ = _locate(str(file.parent / name) if "/" in name else name)
        except OperatorError as error:
            raise OperatorError(f"{file}: extends: {error}") from None
        table = _merge(_resolve(base_file, base_variants, extended_by=(*extended_by, file)), table)
    descriptions = []
    for variant in variants or ([layers.default_variant] if layers.default_variant else []):
        override = layers.variants.get(variant)
        if override is None:
            known = ", ".join(layers.variants) or "none"
            raise OperatorError(f"{file}: there is no variant {variant!r}. Use one of {known}.")
        table = _merge(table, _with_absolute_paths(override, file.parent))
        descriptions.append(override.get("description", variant))
        table["name"] = ":".join([str(table["name"]), variant])
    if descriptions:
        table["description"] = ", ".join(map(str, descriptions))
    return table


def _with_absolute_paths(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths are relative to the file that holds them. A model is a path when it starts with a dot or a slash."""
    absolute = dict(table)
    for key in ("taxonomy", "template", "model"):
        value = absolute.get(key)
        if isinstance(value, str) and value.isprintable() and (key != "model" or value.startswith((".", "/"))):
            absolute[key] = str((folder / value).resolve())
    return absolute


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


# --- From a table to a profile ---------------------------------------------------------------------------


def _profile(table: Mapping[str, Any], file: Path) -> Profile:
    profile = check(_PROFILE, table, file)
    _check_family(profile, file)
    if profile.stand_in and (taken := _names_of_the_real_model() & {name.casefold() for name in profile.served_as}):
        raise OperatorError(
            f"{file}: served_as: a stand-in cannot be served as {', '.join(sorted(taken))}, which is the name of a real"
            " model. Name it in GUARD_MODEL_ALIASES: requests may then use that name, and replies still say who judged."
        )
    if not profile.images:
        return replace(profile, sees_images=False, image_limit=0)
    if profile.image_limit == 0:
        raise OperatorError(f"{file}: image_limit: must be at least 1 while images is true.")
    return profile


def _check_family(profile: Profile, file: Path) -> None:
    family = family_named(profile.family)
    keys = {VOCABULARY_SIZE, *family.tokens}
    if missing := [key for key in keys if key not in profile.tokens]:
        raise OperatorError(f"{file}: tokens.{missing[0]}: the key is missing.")
    if unknown := [key for key in profile.tokens if key not in keys]:
        raise OperatorError(f"{file}: tokens.{unknown[0]}: there is no such key.")
    try:
        family.check_categories(profile.taxonomy)
    except ValueError as error:
        raise OperatorError(f"{file}: taxonomy: {error}.") from error


def _names_of_the_real_model() -> set[str]:
    return {name.casefold() for name in load_profile(DEFAULT_PROFILE).served_as}
