"""Profiles: what the shipped ones say, and how mistakes in an operator's own are told."""

import ast
import importlib.util
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from server.checkpoints import cpu
from server.checkpoints.profile import ENGINE_KEYS_OF_THE_PROFILE, SHIPPED, load_profile, variant_specs
from server.checkpoints.taxonomy import load_taxonomy
from server.domain.errors import OperatorError
from server.domain.taxonomy import OPENAI_CATEGORIES
from server.families.tokenizer import PromptTokenizer
from tests.readings import FAMILY

ALL_SPECS = [spec for folder in sorted(SHIPPED.glob("*/profile.toml")) for spec in variant_specs(folder.parent.name)]

OWN = """
name = "own"
model = "."
served_as = ["own"]
context_tokens = 2048
image_limit = 2
taxonomy = "taxonomy.toml"
template = "prompt.jinja"

[tokens]
blank_line = 1
safe = 2
unsafe = 3
vocabulary_size = 10

[engine]
dtype = "float32"
"""

TAXONOMY = """
[[category]]
code = "S1"
prompt_name = "Gossip."
name = "Gossip"
slug = "gossip"
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of a small profile of one's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "profile.toml").write_text(OWN)
    (folder / "taxonomy.toml").write_text(TAXONOMY)
    (folder / "prompt.jinja").write_text("{{ messages }}")
    return folder


def extend(folder: Path, tail: str) -> str:
    """Append to the profile in `folder` and give back its spec."""
    with (folder / "profile.toml").open("a") as file:
        file.write(tail)
    return str(folder)


def retold(folder: Path, old: str, new: str) -> str:
    file = folder / "profile.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return str(folder)


# --- What is shipped -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "dtype"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile\n", "bfloat16"),
        ("flags\t\t: fpu avx512f avx512_bf16 clzero\n", "bfloat16"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", "float32"),
        (None, "float32"),
    ],
    ids=["with AMX", "without AMX", "with neither", "unknown"],
)
def test_the_fastest_dtype_is_the_cpus_own(own, monkeypatch, tmp_path, facts, dtype):
    monkeypatch.setattr(cpu, "CPU_FACTS", tmp_path / "cpuinfo")
    if facts:
        (tmp_path / "cpuinfo").write_text(facts)
    (own / "profile.toml").write_text(OWN.replace('"float32"', '"fastest"'))
    assert load_profile(str(own)).engine["dtype"] == dtype


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_every_shipped_variant_loads(spec: str) -> None:
    profile = load_profile(spec)
    assert profile.name == spec
    assert profile.context_tokens >= 8192
    assert profile.taxonomy.codes == tuple(f"S{number}" for number in range(1, 15))


def test_the_default_is_the_whole_context_in_bf16() -> None:
    profile = load_profile("llama-guard-4-12b")
    assert profile.name == "llama-guard-4-12b:80gb"
    assert (profile.context_tokens, profile.image_limit, profile.engine["dtype"]) == (163_840, 5, "bfloat16")
    assert "quantization" not in profile.engine
    assert not profile.is_local


def test_answer_tokens_of_llama_guard() -> None:
    tokens = load_profile("llama-guard-4-12b").tokens
    assert tokens == {"blank_line": 368, "safe": 60411, "unsafe": 72110, "vocabulary_size": 202_048}


def test_variants_override_only_what_they_name() -> None:
    base, small = load_profile("llama-guard-4-12b"), load_profile("llama-guard-4-12b:24gb")
    assert small.engine["quantization"] == "fp8_per_channel"
    assert small.engine["dtype"] == base.engine["dtype"]
    assert replace(small, name="", description="", engine={}, context_tokens=0) == replace(
        base, name="", description="", engine={}, context_tokens=0
    )


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_every_shipped_profile_but_pocket_is_a_moderator_and_sees_what_it_takes(spec: str) -> None:
    profile = load_profile(spec)
    assert profile.stand_in is (spec == "pocket")
    assert profile.sees_images is (profile.images and spec != "pocket")


@pytest.mark.parametrize("name", ["meta-llama/Llama-Guard-4-12B", "LLAMA-guard-4-12b"])
def test_a_stand_in_takes_no_real_models_name_not_even_by_its_profile(tmp_path: Path, name: str) -> None:
    file = tmp_path / "profile.toml"
    file.write_text(f'extends = "pocket"\nname = "mine"\nserved_as = ["{name}"]\n')
    with pytest.raises(OperatorError, match=r"a stand-in cannot be served as .* GUARD_MODEL_ALIASES"):
        load_profile(str(tmp_path))
    file.write_text(file.read_text() + "stand_in = false\n")
    assert load_profile(str(tmp_path)).served_as == (name,)


def test_variants_combine() -> None:
    profile = load_profile("llama-guard-4-12b:24gb:text-only")
    assert (profile.images, profile.image_limit, profile.context_tokens) == (False, 0, 32_768)
    assert profile.name == "llama-guard-4-12b:24gb:text-only"
    assert profile.description == "fp8 weights and KV cache, 32k context, no images"


def test_categories_set_openais_as_documented() -> None:
    taxonomy = load_profile("llama-guard-4-12b").taxonomy
    assert taxonomy["S1"].openai == ("violence", "illicit", "illicit/violent")
    assert taxonomy["S4"].openai == ("sexual", "sexual/minors")
    assert (taxonomy["S10"].openai, taxonomy["S10"].openai_with) == (("hate",), (("S1", "hate/threatening"),))
    assert [category.code for category in taxonomy.categories if category.text_only] == ["S14"]
    assert [category.code for category in taxonomy.categories if not category.openai] == [
        *("S6", "S7", "S8", "S13", "S14")
    ]
    ever_set = {name for category in taxonomy.categories for name in category.openai} | {"hate/threatening"}
    assert OPENAI_CATEGORIES - ever_set == {
        *("violence/graphic", "harassment/threatening", "self-harm/intent", "self-harm/instructions")
    }


def test_slugs_are_unique() -> None:
    slugs = [category.slug for category in load_profile("llama-guard-4-12b").taxonomy.categories]
    assert len(set(slugs)) == len(slugs)
    assert "privacy" in slugs


def test_pocket_speaks_the_same_prompt_about_the_same_categories() -> None:
    pocket, guard = load_profile("pocket"), load_profile("llama-guard-4-12b")
    assert (pocket.taxonomy, pocket.chat_template) == (guard.taxonomy, guard.chat_template)
    assert pocket.is_local
    assert Path(pocket.model) == SHIPPED / "pocket"
    assert pocket.runs_on_cpu


def test_answer_tokens_of_pocket_are_those_of_its_tokenizer() -> None:
    tokenizer = PromptTokenizer(Tokenizer.from_file(str(SHIPPED / "pocket" / "tokenizer.json")))
    tokens = load_profile("pocket").tokens
    words = {key: tokenizer.single_id(word) for key, word in FAMILY.tokens.items()}
    assert tokens == {**words, "vocabulary_size": tokenizer.vocabulary_size}


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_vllm_knows_every_engine_key(spec: str) -> None:
    engine = importlib.util.find_spec("vllm")
    if engine is None or engine.origin is None:
        pytest.skip("vLLM is not installed")
    # Read, not imported: that would take seconds.
    module = ast.parse(Path(engine.origin).with_name("engine").joinpath("arg_utils.py").read_text())
    (arguments,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    known = {node.target.id for node in arguments.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    assert set(load_profile(spec).engine) <= known
    assert set(ENGINE_KEYS_OF_THE_PROFILE) <= known


# --- One's own -------------------------------------------------------------------------------------------


def test_a_folder_and_a_file_are_specs(own: Path) -> None:
    assert load_profile(str(own)) == load_profile(str(own / "profile.toml"))
    profile = load_profile(str(own))
    assert (profile.name, profile.model, profile.chat_template) == ("own", str(own), "{{ messages }}")
    assert (profile.images, profile.revision, profile.network) == (True, None, None)
    assert (profile.sees_images, profile.stand_in) == (False, False)


def test_an_own_profile_extends_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(
        'name = "a40"\nextends = "llama-guard-4-12b:48gb-bf16"\ncontext_tokens = 65536\n[engine]\nmax_num_seqs = 32\n'
    )
    profile, base = load_profile(str(tmp_path)), load_profile("llama-guard-4-12b:48gb-bf16")
    assert (profile.name, profile.context_tokens, profile.engine["max_num_seqs"]) == ("a40", 65_536, 32)
    assert (profile.model, profile.tokens, profile.taxonomy) == (base.model, base.tokens, base.taxonomy)
    assert variant_specs(str(tmp_path)) == (str(tmp_path / "profile.toml"),)


def test_an_extended_path_is_seen_from_the_file_that_holds_it(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "profile.toml").write_text('name = "other"\nextends = "../own"\nmodel = "./weights"\n')
    profile = load_profile(str(other))
    assert (profile.model, profile.chat_template) == (str(other / "weights"), "{{ messages }}")


def test_extending_in_a_circle_is_told(own: Path) -> None:
    with pytest.raises(OperatorError, match="extends itself"):
        load_profile(retold(own, 'name = "own"', 'name = "own"\nextends = "../own"'))


def test_variants_are_listed_in_the_files_order(own: Path) -> None:
    spec = extend(own, '[variants.b]\ncontext_tokens = 1\n[variants."a-1"]\ncontext_tokens = 2\n')
    file = own / "profile.toml"
    assert variant_specs(spec) == (f"{file}:b", f"{file}:a-1")
    assert load_profile(f"{spec}:b").context_tokens == 1
    assert load_profile(spec).context_tokens == 2048


def test_no_images_means_a_limit_of_none(own: Path) -> None:
    assert load_profile(retold(own, "image_limit = 2", "image_limit = 2\nimages = false")).image_limit == 0


# --- Mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("context_tokens = 2048", "", "context_tokens: the key is missing"),
        ("context_tokens = 2048", 'context_tokens = "2048"', "context_tokens: .* valid integer, not '2048'"),
        ("context_tokens = 2048", "context_tokens = true", "context_tokens: .* valid integer, not True"),
        ("context_tokens = 2048", "context_tokens = 2048.0", "context_tokens: .* valid integer, not 2048.0"),
        ("image_limit = 2", 'image_limit = 2\nsees_images = "yes"', "sees_images: .* valid boolean, not 'yes'"),
        ("image_limit = 2", "image_limit = 2\nstand_in = 1", "stand_in: .* valid boolean, not 1"),
        ("context_tokens = 2048", "context_tokens = 0", "context_tokens: .* greater than 0"),
        ("context_tokens = 2048", "context_tokens = 2048\ncontxt = 1", "contxt: there is no such key"),
        ("image_limit = 2", "image_limit = 0", "image_limit: must be at least 1"),
        ("image_limit = 2", "image_limit = -1", "image_limit: .* greater than or equal to 0"),
        ('served_as = ["own"]', 'served_as = "own"', "served_as: .* valid array, not 'own'"),
        ('served_as = ["own"]', "served_as = [1]", r"served_as\.0: .* valid string, not 1"),
        ('served_as = ["own"]', "served_as = []", "served_as: .* at least 1 item"),
        ("safe = 2\n", "", r"tokens\.safe: the key is missing"),
        ("unsafe = 3", "unsafe = 3\nmaybe = 4", r"tokens\.maybe: there is no such key"),
        ("[tokens]", "[engine.tokens]", "tokens: the key is missing"),
        ("[tokens]", "tokens = 1\n[engine.tokens]", "tokens: must be a table, not 1"),
        ('dtype = "float32"', "max_model_len = 9", "engine: max_model_len is not set here: set context_tokens"),
        ("[engine]", "[network]\nlayers = 1\n[engine]", r"network\.kv_heads: the key is missing"),
        ('name = "own"', "", "name: the key is missing"),
        ('taxonomy = "taxonomy.toml"', "taxonomy = 1", "taxonomy: must be the path of a file"),
        ('model = "."', 'model = "./a\\nb"', "model: must not hold control characters"),
        ('model = "."', 'model = "."\nextends = "lama"', "extends: There is no profile 'lama'"),
        ('model = "."', 'model = "."\nextends = "../gone"', r"extends: .*/gone: no such file"),
        ('name = "own"', "name = own", "is not valid TOML"),
        ('template = "prompt.jinja"', 'template = "gone.jinja"', r"gone\.jinja: cannot be read"),
        ('taxonomy = "taxonomy.toml"', 'taxonomy = "gone.toml"', r"gone\.toml: cannot be read"),
    ],
)
def test_a_mistake_names_file_and_key(own: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(OperatorError, match=told) as raised:
        load_profile(retold(own, old, new))
    assert str(raised.value).startswith(f"{own}/")
    assert "\n" not in str(raised.value)


def test_all_mistakes_of_a_file_are_reported_at_once(own: Path) -> None:
    with pytest.raises(OperatorError) as raised:
        load_profile(retold(own, "safe = 2\nunsafe = 3", 'safe = "2"\nunsafe = -3'))
    for key in ("tokens.safe", "tokens.unsafe"):
        assert f"{key}: " in str(raised.value)


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ("safe = 2", r"tokens\.unsafe: the key is missing"),
        ("safe = 2\nunsafe = 3\nmaybe = 4", r"tokens\.maybe: there is no such key"),
    ],
)
def test_tokens_are_those_of_the_family(own: Path, new: str, told: str) -> None:
    with pytest.raises(OperatorError, match=told):
        load_profile(retold(own, "safe = 2\nunsafe = 3", new))


def test_a_file_that_is_no_text_is_reported(own: Path) -> None:
    (own / "profile.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(OperatorError, match="is not UTF-8 text"):
        load_profile(str(own))


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


KEYS = ("name", "model", "served_as", "context_tokens", "image_limit", "taxonomy", "template", "tokens", "engine")
KNOWN = st.sampled_from([*KEYS, "extends", "variants", "default_variant", "network", "revision", "safe", "layers"])
WORDS = st.text(st.characters(codec="ascii", exclude_characters="\x7f"))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | WORDS,
    lambda values: st.lists(values, max_size=2) | st.dictionaries(KNOWN | WORDS, values, max_size=2),
    max_leaves=4,
)


@given(changes=st.dictionaries(KNOWN | WORDS, VALUES, min_size=1, max_size=3))
def test_whatever_a_profile_says_it_loads_or_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "taxonomy.toml").write_text(TAXONOMY)
    (folder / "prompt.jinja").write_text("{{ messages }}")
    table = {**tomllib.loads(OWN), **changes}
    (folder / "profile.toml").write_text("".join(f"{json.dumps(key)} = {as_toml(one)}\n" for key, one in table.items()))
    try:
        load_profile(str(folder))
    except OperatorError as error:
        refusal = str(error)
    else:
        return
    assert len(refusal.splitlines()) == 1


def test_unknown_variants_profiles_and_files_are_told(own: Path) -> None:
    with pytest.raises(OperatorError, match=r"no variant 'huge'. Use one of small"):
        load_profile(extend(own, "[variants.small]\ncontext_tokens = 1\n") + ":huge")
    with pytest.raises(OperatorError, match=r"no profile 'lama'. Use one of llama-guard-4-12b, pocket"):
        load_profile("lama")
    with pytest.raises(OperatorError, match="no such file"):
        load_profile(str(own / "nowhere"))
    with pytest.raises(OperatorError, match=r"variants\.broken: must be a table, not 1"):
        load_profile(retold(own, "[variants.small]", "[variants]\nbroken = 1\n[variants.small]"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('code = "S1"', 'code = "S,1"', "category 'S,1': code: must be a code or a name"),
        ('slug = "gossip"', 'slug = "Gossip!"', "S1: slug: must be lower_snake_case"),
        ('slug = "gossip"', "", "S1: slug: the key is missing"),
        ('slug = "gossip"', 'slug = "gossip"\nopenai = ["gossip"]', r"S1: openai\.0: OpenAI has no category 'gossip'"),
        (
            'slug = "gossip"',
            'slug = "gossip"\nopenai_with = { S2 = "hate" }',
            "S1: openai_with: 'S2' is not a category",
        ),
        ('slug = "gossip"', 'slug = "gossip"\ncolour = "red"', "category S1: colour: there is no such key"),
        ('slug = "gossip"', 'slug = "gossip"\n' + TAXONOMY, "each code once"),
        (TAXONOMY, "", "category: the key is missing"),
        (TAXONOMY, "category = [1]", r"category\.0: must be a table, not 1"),
        (TAXONOMY, "category = []", r"at least one \[\[category\]\]"),
    ],
)
def test_a_mistake_in_a_taxonomy_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    file = tmp_path / "taxonomy.toml"
    assert old in TAXONOMY
    file.write_text(TAXONOMY.replace(old, new))
    with pytest.raises(OperatorError, match=told):
        load_taxonomy(file)


def test_categories_are_those_of_the_family(own: Path) -> None:
    (own / "taxonomy.toml").write_text(TAXONOMY.replace('code = "S1"', 'code = "S15"'))
    with pytest.raises(OperatorError, match=r"profile\.toml: taxonomy: code S15 must be one of S1 to S14"):
        load_profile(f"{own}/")


def test_shipped_files_are_toml_with_a_final_newline() -> None:
    for file in SHIPPED.glob("*/*.toml"):
        assert tomllib.loads(file.read_text())
        assert file.read_text().endswith("\n")
