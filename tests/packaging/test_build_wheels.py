"""tools/build_wheels.py: its decisions, with every command it would run written down instead of run."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import build_wheels
import pytest
import wheel_rules


class FakeTools:
    """Stands in for `run`: notes each command and its environment, and leaves the files that it would."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.environments: list[dict[str, str]] = []
        self.more: list[str] = []
        self.symbols: list[tuple[str, str]] = []
        self.sizes = {"libmvit_kernels_cpu.so": 100, "libmvit_kernels_cuda.so": 100}

    def write_wheel(self, file: Path, cuda: bool) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
            libraries = {"built": True, "architectures": ["80", "90", "90+PTX"]}
            built = {"cpu": {"built": True}, "cuda": libraries if cuda else {"built": False}}
            wheel.writestr("mvit_kernels/lib/build_info.json", json.dumps(built))
            for name, size in self.sizes.items():
                if cuda or "cuda" not in name:
                    wheel.writestr(f"mvit_kernels/lib/{name}", bytes(size))
            for name in ("mvit_kernels/__init__.py", "mvit_kernels/py.typed", *self.more):
                wheel.writestr(name, "")

    def nm(self, library: Path, *options: str) -> list[tuple[str, str]]:
        return [(kind, name) for kind, name in self.symbols if (kind in "Uw") == ("--undefined-only" in options)]

    def __call__(self, step, *command, env=None, cwd=None) -> str:
        words = [str(word) for word in command]
        self.commands.append(" ".join(words))
        self.environments.append(dict(env or {}))
        if "venv" in words:
            (Path(words[-1]) / "bin").mkdir(parents=True, exist_ok=True)
        if any(word.startswith("cuda-toolkit[") for word in words):
            nvcc = Path(words[0]).parents[1] / "lib" / "nvidia" / "cu13" / "bin" / "nvcc"
            nvcc.parent.mkdir(parents=True, exist_ok=True)
            nvcc.touch()
        if "--wheel-dir" in words:
            local, fixed = (env or {})["MVIT_KERNELS_LOCAL_VERSION"], "auditwheel" in words
            platform = words[words.index("--plat") + 1] if fixed else "linux_x86_64"
            folder = Path(words[words.index("--wheel-dir") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            self.write_wheel(folder / f"mvit_kernels-0.1.0+{local}-py3-none-{platform}.whl", cuda=local != "cpu")
        if step.startswith("building the source"):
            return "mvit_kernels-0.1.0.tar.gz\n"
        return str(Path(words[0]).parents[1] / "lib") if step == "finding packages" else "1700000000\n"


@pytest.fixture
def tools(monkeypatch, tmp_path) -> FakeTools:
    fake = FakeTools()
    monkeypatch.setattr(build_wheels, "run", fake)
    monkeypatch.setattr(build_wheels, "ROOT", tmp_path)
    monkeypatch.setattr(wheel_rules, "symbols", fake.nm)
    monkeypatch.setattr(build_wheels.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "mvit_kernels-0.1.0.tar.gz").write_text("sources")
    return fake


def test_one_wheel_per_release_named_for_it_with_checksums(tools, tmp_path, capsys) -> None:
    assert build_wheels.main(["--cuda", "cpu", "13.0"]) == 0
    names = [f"mvit_kernels-0.1.0+{local}-py3-none-manylinux_2_28_x86_64.whl" for local in ("cpu", "cu130")]
    assert capsys.readouterr().out.split() == names
    sums = dict(reversed(line.split()) for line in (tmp_path / "dist" / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {*names, "mvit_kernels-0.1.0.tar.gz"}
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "dist" / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("release", ["13.0", "13.2"])
def test_cuda_13_takes_its_compiler_from_the_package_index(tools, release) -> None:
    assert build_wheels.main(["--cuda", release]) == 0
    (install,) = [command for command in tools.commands if "cuda-toolkit" in command]
    assert f" cuda-toolkit[nvcc,cccl]=={release}.*" in install
    assert " torch" not in install, "torch has packages of its own release of CUDA pinned"
    (build,) = [env for command, env in zip(tools.commands, tools.environments, strict=True) if " pip wheel" in command]
    assert build["MVIT_KERNELS_CUDA"] == "require"
    assert build["CUDA_HOME"].endswith("/toolchain/lib/nvidia/cu13")
    assert build["MVIT_KERNELS_LOCAL_VERSION"] == "cu" + release.replace(".", "")


def test_an_older_cuda_takes_its_compiler_from_the_folder_given(tools, tmp_path) -> None:
    nvcc = tmp_path / "cuda-12.8" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    assert build_wheels.main(["--cuda", "12.8", "--toolkit", f"12.8={tmp_path / 'cuda-12.8'}"]) == 0
    assert not [command for command in tools.commands if "cuda-toolkit" in command]
    assert {env["CUDA_HOME"] for env in tools.environments if "CUDA_HOME" in env} == {str(tmp_path / "cuda-12.8")}


def test_a_cpu_wheel_needs_no_cuda(tools, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/usr/local/cuda")
    assert build_wheels.main([]) == 0
    assert not [command for command in tools.commands if "cuda-toolkit" in command]
    assert {env.get("MVIT_KERNELS_CUDA", "off") for env in tools.environments} == {"off"}
    assert not [env for env in tools.environments if "CUDA_HOME" in env]


def test_flags_of_the_caller_do_not_reach_the_build(tools, monkeypatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert build_wheels.main([]) == 0
    for env in tools.environments:
        assert not {"CXXFLAGS", "PYTHONPATH"} & env.keys()
        assert env.get("SOURCE_DATE_EPOCH", "1700000000") == "1700000000"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cuda", "13"], "--cuda '13': 'cpu' or a release like 13.0"),
        (["--cuda", "12.8"], "--cuda 12.8: the package index has no compiler for it; add --toolkit 12.8=FOLDER"),
        (
            ["--cuda", "12.8", "--toolkit", "12.8=/nonexistent"],
            "--toolkit 12.8=/nonexistent: there is no bin/nvcc in it",
        ),
        (["--cuda", "cpu", "--toolkit", "/usr/local/cuda"], "--toolkit '/usr/local/cuda': RELEASE=FOLDER is right"),
        (["--cuda", "cpu", "--toolkit", "12.8=/usr"], "--toolkit 12.8: not among --cuda cpu"),
    ],
)
def test_what_can_not_be_built_is_one_line(tools, capsys, arguments, words) -> None:
    assert build_wheels.main(arguments) == 2
    assert capsys.readouterr().err == f"build_wheels: {words}\n"
    assert not tools.commands


def test_a_library_over_its_budget_is_no_wheel(tools, capsys) -> None:
    budget = wheel_rules.CUDA_BUDGET["host"] + 2 * wheel_rules.CUDA_BUDGET["code"] + wheel_rules.CUDA_BUDGET["PTX"]
    tools.sizes["libmvit_kernels_cuda.so"] = budget
    assert build_wheels.main(["--cuda", "13.0"]) == 0
    tools.sizes["libmvit_kernels_cuda.so"] += 1
    assert build_wheels.main(["--cuda", "13.0"]) == 2
    assert f"libmvit_kernels_cuda.so has {budget + 1} bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "tests/test_mhpa.py",
        "cuda_toolchain.py",
        "mvit_kernels/lib/libmvit_kernels_emulated.so",
        "mvit_kernels/lib/mvit_emulation.cpython-311-x86_64-linux-gnu.so",
        "mvit_kernels/csrc/cuda/launchers.h",
        "mvit_kernels/lib/attention.o",
    ],
)
def test_a_file_that_does_not_belong_there_is_no_wheel(tools, capsys, name) -> None:
    tools.more = [name]
    assert build_wheels.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} does not belong in a wheel" in line


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("U", "_ZN2at6TensorC1Ev", "imports of torch more than its stable C interface"),
        ("U", "_ZN3c1010TensorImpl17set_storage_offsetEl", "imports of torch more than its stable C interface"),
        ("U", "PyErr_SetString", "imports of Python"),
        ("w", "_Py_NoneStruct", "imports of Python"),
        ("U", "exp@GLIBC_2.29", "needs a newer system than manylinux_2_28"),
        ("U", "_ZSt21ios_base_library_initv@GLIBCXX_3.4.32", "needs a newer system than manylinux_2_28"),
        ("T", "main", "shows what Python does not look up"),
    ],
)
def test_a_symbol_that_ties_the_library_to_more_is_no_wheel(tools, capsys, kind, name, words) -> None:
    tools.symbols = [("T", "mvit_kernels_interface"), ("U", "aoti_torch_empty"), ("U", "memcpy@GLIBC_2.14")]
    assert build_wheels.main([]) == 0
    tools.symbols.append((kind, name))
    assert build_wheels.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"libmvit_kernels_cpu.so {words}: {name}")


def test_a_command_that_fails_ends_the_build_with_its_output(capsys) -> None:
    with pytest.raises(build_wheels.BuildError, match=r"^trying failed, its output is above$"):
        build_wheels.run("trying", sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)")
    assert "the reason" in capsys.readouterr().err
