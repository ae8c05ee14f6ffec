"""Rules of the source tree that no compiler checks: the direction of includes, and what an ISA object may hold.

Each rule is a function from text to a list of complaints, so that it is tested on a violation, too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from checkout import ROOT, source_hash

CSRC = ROOT / "csrc"
LAYERS = ("common", "formats", "kernels", "ops", "engine", "bindings")
ISAS = ("avx2", "avx_vnni", "avx_vnni_evex", "avx512", "avx512_vbmi2", "avx512_bf16", "amx", "amx_emulated")
FLAGS = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]}
C_HEADERS = {f"{name}.h" for name in ("float", "limits", "math", "stddef", "stdint", "string")}
C_HEADERS |= {"cfloat", "climits", "cstddef", "cstdint", "cstring"}

# --- includes ---------------------------------------------------------------------------------------------------------


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def includes(text: str) -> list[tuple[str, str]]:
    """The includes of a source as (opening bracket or quote, name)."""
    return re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', without_comments(text), flags=re.MULTILINE)


def layer_complaints(name: str, text: str) -> list[str]:
    """Includes of csrc/`name` that run back up the layers, or reach what only the bindings or nobody may."""
    layer = name.partition("/")[0]
    complaints = []
    for kind, target in includes(text):
        if re.match(r"(torch|ATen|c10)/", target):
            complaints.append(f"{name}: includes {target}; nothing in csrc may know torch")
        elif re.match(r"pybind11/|Python\.h|numpy/", target) and layer != "bindings":
            complaints.append(f"{name}: includes {target}; only csrc/bindings knows Python")
        elif kind == '"' and target != "gossamer_build.h":
            top = target.partition("/")[0]
            if top not in LAYERS:
                complaints.append(f'{name}: "{target}" must be written from csrc, as in "common/types.h"')
            elif LAYERS.index(top) > LAYERS.index(layer):
                complaints.append(f"{name}: includes {target}; {layer} stands below {top}")
    return complaints


def plain_data_complaints(name: str, text: str) -> list[str]:
    """What in a header would leave code in every object that includes it."""
    code = without_comments(text)
    complaints = [f"{name}: {word}" for word in ("template", "class") if re.search(rf"(?<!enum )\b{word}\b", code)]
    if re.search(r"\)\s*(const\s*)?(noexcept\s*)?\{", code):
        complaints.append(f"{name}: has a function body")
    for body in re.findall(r"\bstruct\s+\w+\s*\{(.*?)\n\};", code, flags=re.DOTALL):
        members = [line for line in body.split(";") if "static constexpr" not in line]
        complaints += [
            f"{name}: default member initializer: {line.strip()}" for line in members if re.search("[={]", line)
        ]
    return complaints


def isa_include_complaints(name: str, sources: dict[str, str]) -> list[str]:
    """Includes of ISA-flagged csrc/`name`, followed through its headers, beyond what rule 2 of the layout allows."""
    complaints, seen, todo = [], {name}, [name]
    while todo:
        source = todo.pop()
        if source != name and not source.endswith("-inl.h"):
            complaints += [f"{name}: {c}" for c in plain_data_complaints(source, sources[source])]
        for kind, target in includes(sources[source]):
            if kind == "<" and target != "immintrin.h" and target not in C_HEADERS:
                complaints.append(f"{name}: {source} includes <{target}>")
            elif kind == '"' and target not in seen:
                seen.add(target)
                todo.append(target)
    return complaints


def isa_of(name: str) -> str | None:
    """The ISA whose flags a source or object is compiled with, by its name."""
    match = re.search(rf"_({'|'.join(sorted(ISAS, key=len, reverse=True))})\.cc(\.o)?$", name)
    return match[1] if match else None


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The C++ sources by their path from csrc."""
    files = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".inc", ".cc", ".cu")]
    assert files
    return {path.relative_to(CSRC).as_posix(): path.read_text() for path in files}


def test_includes_point_down_the_layers(sources: dict[str, str]) -> None:
    assert {name.partition("/")[0] for name in sources} == set(LAYERS)
    complaints = [c for name, text in sources.items() for c in layer_complaints(name, text)]
    assert not complaints, "\n".join(complaints)


def test_every_source_is_built(sources: dict[str, str]) -> None:
    listed = re.findall(r"^\s*csrc/(\S+\.cc)\)?$", (ROOT / "CMakeLists.txt").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(name for name in sources if name.endswith(".cc"))


def test_isa_files_include_only_what_leaves_no_code(sources: dict[str, str]) -> None:
    flagged = [name for name in sources if isa_of(name)]
    assert {isa_of(name) for name in flagged} >= {"avx2", "avx512"}
    complaints = [c for name in flagged for c in isa_include_complaints(name, sources)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("formats/a.h", '#include "kernels/table.h"', "stands below kernels"),
        ("common/a.h", ' #  include "bindings/x.h"', "stands below bindings"),
        ("engine/a.cc", "#include <torch/torch.h>", "torch"),
        ("bindings/a.cc", "#include <c10/util/Half.h>", "torch"),
        ("ops/a.cc", "#include <pybind11/numpy.h>", "Python"),
        ("ops/a.cc", '#include "linear.h"', "must be written from csrc"),
    ],
)
def test_layer_rule_catches(name: str, text: str, word: str) -> None:
    complaints = layer_complaints(name, text)
    assert len(complaints) == 1
    assert word in complaints[0]


def test_layer_rule_accepts_what_is_right() -> None:
    text = '// #include "engine/x.h"\n#include "common/a.h"\n#include <vector>\n#include "kernels/b.h"\n'
    assert layer_complaints("kernels/cpu/a.cc", text) == []


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("#include <vector>", "<vector>"),
        ('#include "common/deep.h"', "<string>"),
        ("struct A {\n  int x = 3;\n};", "default member initializer: int x = 3"),
        ("struct A {\n  int x{};\n};", "default member initializer"),
        ("inline int f() { return 1; }", "function body"),
        ("template <int N> int f();", "template"),
    ],
)
def test_isa_include_rule_catches(header: str, word: str) -> None:
    sources = {
        "common/deep.h": "#include <string>",
        "common/a.h": header,
        "kernels/cpu/x_avx2.cc": '#include "common/a.h"',
    }
    complaints = isa_include_complaints("kernels/cpu/x_avx2.cc", sources)
    assert len(complaints) == 1
    assert word in complaints[0]


def test_isa_include_rule_accepts_what_is_right() -> None:
    data = "enum class Type : int { kA };\nstruct View {\n  static constexpr int kRows = 16;\n  const int* masks;\n};"
    sources = {
        "formats/v.h": data,
        "kernels/cpu/x-inl.h": '#include "formats/v.h"\nstatic inline int f() { return 1; }',
        "kernels/cpu/x_avx512.cc": '#include <immintrin.h>\n#include "kernels/cpu/x-inl.h"',
    }
    assert isa_include_complaints("kernels/cpu/x_avx512.cc", sources) == []


# --- objects ----------------------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def symbol_complaints(isa: str, listing: str) -> list[str]:
    """Symbols that other objects see, in the output of `nm --defined-only`, outside namespace gossamer::<isa>."""
    inside = re.compile(rf"_Z(?:T[VIS]|GV|GR|Z)*NK?8gossamer{len(isa)}{isa}(?![a-z_])")
    symbols = [line.split()[-2:] for line in listing.splitlines() if line.strip() and not line.endswith(":")]
    return [f"{kind} {name}" for kind, name in symbols if (kind.isupper() or kind in "uvw") and not inside.match(name)]


def evex_complaints(listing: str) -> list[str]:
    """Instructions of AVX-512 in the output of `objdump -d`: EVEX-coded ones begin with the byte 62."""
    complaints = []
    for line in listing.splitlines():
        parts = line.split("\t")
        if len(parts) >= 3 and (
            re.match(r"(?:(?:64|65|67) )*62 ", parts[1] + " ") or re.search(r"%k[0-7]\b", parts[2])
        ):
            complaints.append(line.strip())
    return complaints


def isa_objects() -> list[Path]:
    """The ISA objects of the build that the sources as they stand belong to."""
    for cache in sorted((ROOT / "build").glob("*/CMakeCache.txt")):
        header = cache.parent / "generated" / "gossamer_build.h"
        plain = re.search(r"^GOSSAMER_SANITIZE:STRING=$", cache.read_text(), flags=re.MULTILINE)
        if plain and header.exists() and source_hash(ROOT) in header.read_text():
            return [path for path in (cache.parent / "CMakeFiles").rglob("*.o") if isa_of(path.name)]
    return []


@pytest.fixture(scope="module")
def objects() -> list[Path]:
    found = isa_objects()
    if not found:
        pytest.skip("no build of these sources with ISA objects under build/")
    if not shutil.which("nm") or not shutil.which("objdump"):
        pytest.skip("needs nm and objdump")
    return found


@pytest.fixture(scope="module")
def compile_object(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    compiler = shutil.which("c++") or shutil.which("g++")
    if not compiler or not shutil.which("objdump") or not isa_objects():
        pytest.skip("needs a compiler, objdump and an x86-64 processor")

    def build(code: str, *flags: str) -> Path:
        folder = tmp_path_factory.mktemp("object")
        (folder / "x.cc").write_text(code)
        run(compiler, "-std=c++20", "-O2", *flags, "-c", folder / "x.cc", "-o", folder / "x.o")
        return folder / "x.o"

    return build


def test_isa_objects_share_no_symbol(objects: list[Path]) -> None:
    complaints = [
        f"{path.name}: {c}"
        for path in objects
        for c in symbol_complaints(str(isa_of(path.name)), run("nm", "--defined-only", path))
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("isa", ["avx2", "avx_vnni"])
def test_avx2_objects_hold_no_avx512(objects: list[Path], isa: str) -> None:
    avx2 = [path for path in objects if isa_of(path.name) == isa]
    assert avx2
    complaints = [f"{path.name}: {c}" for path in avx2 for c in evex_complaints(run("objdump", "-d", path))]
    assert not complaints, "\n".join(complaints[:20])


@pytest.mark.parametrize(("isa", "coding"), [("avx_vnni", "c4"), ("avx_vnni_evex", "62")])
def test_avx_vnni_objects_multiply_by_one_instruction(objects: list[Path], isa: str, coding: str) -> None:
    found = [path for path in objects if isa_of(path.name) == isa]
    assert found or isa == "avx_vnni_evex"
    for path in found:
        dots = [line.split("\t") for line in run("objdump", "-d", path).splitlines() if "vpdpbusd" in line]
        assert dots, path
        assert {parts[1].split()[0] for parts in dots} == {coding}, path


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("#include <vector>\nvoid f(std::vector<int>& v) { v.push_back(1); }", "W _ZNSt6vector"),
        ("inline int g() { return 1; }\nint f() { return g(); }", "W _Z1gv"),
        ("namespace gossamer::avx512 { int f(int x) { return x; } }", "T _ZN8gossamer6avx5121fEi"),
        ("namespace gossamer::avx2_other { int f(int x) { return x; } }", "T _ZN8gossamer10avx2_other"),
    ],
)
def test_symbol_rule_catches(compile_object: Callable[..., Path], code: str, word: str) -> None:
    complaints = symbol_complaints("avx2", run("nm", "--defined-only", compile_object(code, "-O0")))
    assert any(word in c for c in complaints), complaints


def test_symbol_rule_accepts_what_is_right(compile_object: Callable[..., Path]) -> None:
    code = """namespace gossamer::avx2 {
    template <int N> __attribute__((noinline)) int t(int x) { return x + N; }
    struct S { int v; __attribute__((noinline)) int get() const { static int calls = v; return ++calls; } };
    static __attribute__((noinline)) int local(int x) { return x ^ 3; }
    int f(int x) { return t<3>(x) + S{x}.get() + local(x); } }"""
    listing = run("nm", "--defined-only", compile_object(code))
    assert " W _ZN8gossamer4avx21tILi3EEEii" in listing
    assert symbol_complaints("avx2", listing) == []


@pytest.mark.parametrize(
    "body",
    [
        "_mm512_storeu_ps(p, _mm512_loadu_ps(p + n));",
        "_mm256_storeu_ps(p, _mm256_maskz_loadu_ps(__mmask8(n), p));",
        "_mm256_storeu_si256((__m256i*)p, _mm256_rol_epi32(_mm256_loadu_si256((__m256i*)p), 3));",
        'asm volatile("kmovd %0, %%k1" :: "r"(n));',
        'asm volatile("vaddps %zmm1, %zmm2, %zmm3");',
    ],
)
def test_evex_rule_catches(compile_object: Callable[..., Path], body: str) -> None:
    code = f"#include <immintrin.h>\nnamespace gossamer::avx2 {{ void f(float* p, int n) {{ (void)n; {body} }} }}"
    flags = ["-mavx2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    assert evex_complaints(run("objdump", "-d", compile_object(code, *flags)))


def test_evex_rule_accepts_avx2(compile_object: Callable[..., Path]) -> None:
    code = """#include <immintrin.h>
    namespace gossamer::avx2 { void f(float* p, int b) { __m256 x = _mm256_loadu_ps(p);
    _mm256_storeu_ps(p, _mm256_fmadd_ps(x, x, _mm256_set1_ps((float)b))); } }"""
    assert evex_complaints(run("objdump", "-d", compile_object(code, "-mavx2", "-mfma"))) == []


# --- words ------------------------------------------------------------------------------------------------------------

# Hosts of package registries, and what only means something on one machine or in one tracker.
FOREIGN = re.compile(
    r"pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|deb\.debian\.org|proxy\.golang\.org"
    r"|/(?:root|work|home|Users)/\w|/tmp/[w]\b|/opt/(?:wheels|pypi)|\bissue #?\d"
)


def foreign_words(name: str, text: str) -> list[str]:
    lines = enumerate(text.splitlines(), 1)
    return [f"{name}:{number}: {line.strip()[:120]}" for number, line in lines if FOREIGN.search(line)]


def test_repository_names_no_registry_and_no_machine_path() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = run("git", "-C", ROOT, "ls-files").splitlines()
    texts = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    complaints = [c for name, data in texts.items() if b"\0" not in data for c in foreign_words(name, data.decode())]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("text", "mark"), [("pypi@org/x", "."), ("cd @root/x", "/"), ("@work/main", "/"), ("issue@12", " ")]
)
def test_word_rule_catches(text: str, mark: str) -> None:
    assert foreign_words("a.py", text) == []
    assert len(foreign_words("a.py", f"fine\n{text.replace('@', mark)}\n")) == 1
