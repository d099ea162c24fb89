"""Settings of every test: eight emulated CPU devices, float32 matmuls, a compilation cache."""

import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 8

assert "jax" not in sys.modules, "jax was imported before tests/conftest.py had set its devices"
# Compiling is most of a test's time, and takes half as long for machine code that is not optimised.
# Tests that start programs as a user does remove the flags.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={DEVICES}",
    )
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # all programs
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no test looks a name up on the real Hub
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "adversarial"))
sys.path.insert(0, str(ROOT / "tests" / "judging"))  # fake_judge
sys.path.insert(0, str(ROOT / "tests" / "checkpoints"))  # toys
sys.path.insert(0, str(ROOT / "tests" / "serving"))  # toy_server

from launch.compile.slices import quiet_environment  # noqa: E402

quiet_environment()  # some tests compile for TPU slices without a TPU

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# The default profile draws the same examples in every run, so that a failure is due to a change of
# the code. HYPOTHESIS_PROFILE=explore draws new ones.
# A slow machine fails none of them.
UNTIMED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("reproducible", derandomize=True, **UNTIMED)
hypothesis.settings.register_profile("explore", derandomize=False, **UNTIMED)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))

OPT_IN = {
    "weights": "downloads real weights",
    "slow": "takes minutes",
    "peers": "needs the peers' environment",
}

# Files of a minute or more, the longest first: started last, one would keep one process busy alone.
LONGEST = (
    "test_notebooks.py",
    "training/test_steps.py",
    "training/test_stages.py",
    "sampling/test_rows.py",
    "models/test_transformer.py",
    "sampling/test_scheduler.py",
    "training/test_own_data.py",
    "training/test_lora_training.py",
    "adversarial/test_finished_stages.py",
    "adversarial/test_damaged_gguf.py",
    "adversarial/test_gguf_keys.py",
    "judging/test_run.py",
    "models/test_faults.py",
    "launch/compile/test_compile_only.py",
    "models/test_parity_transformers.py",
    "training/test_resume.py",
    "test_demo.py",
)


def pytest_addoption(parser):
    parser.addoption(
        "--run",
        action="append",
        default=[],
        choices=sorted(OPT_IN),
        help="also run tests of this marker",
    )
    parser.addoption(
        "--fuzz-seed", type=int, default=0, help="seed of the inputs that tests/adversarial draws"
    )


def pytest_collection_modifyitems(config, items):
    files = {str(ROOT / "tests" / name): i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: files.get(str(item.path), len(files)))
    chosen = set(config.getoption("--run"))
    for item in items:
        for name, reason in OPT_IN.items():
            if item.get_closest_marker(name) and name not in chosen:
                item.add_marker(pytest.mark.skip(reason=f"{reason}: pytest --run {name}"))


@pytest.fixture(autouse=True)
def root_logger():
    """Undoes what a run of the launcher in this process does to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    names = {number: logging.getLevelName(number) for number in (logging.INFO, logging.WARNING)}
    yield
    root.setLevel(level)
    for handler in set(root.handlers).difference(handlers):
        root.removeHandler(handler)
    for number, name in names.items():
        logging.addLevelName(number, name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the Hugging Face Hub (hub_server.py), with an empty cache and no token."""
    import huggingface_hub
    from hub_server import HubServer
    from huggingface_hub import constants

    import grm_jax.hub

    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        grm_jax.hub._listing.cache_clear()
        yield server
        grm_jax.hub._listing.cache_clear()
        huggingface_hub.close_session()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public benchmark files: $GRM_DATA, or shared/data beside the checkout."""
    candidates = [Path(os.environ["GRM_DATA"])] if "GRM_DATA" in os.environ else []
    candidates += [ROOT.parent / "shared" / "data", ROOT / "shared" / "data"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip(
        f"no benchmark files at {' or '.join(map(str, candidates))}: set GRM_DATA to their folder"
    )


@pytest.fixture(scope="session")
def without_extras(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH in which the packages of the extras fail to import."""
    folder = tmp_path_factory.mktemp("without_extras")
    for name in ("tensorflow", "seqio", "tensorflow_datasets", "clu", "tensorboard", "pandas"):
        error = f"No module named {name!r}"
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError({error!r}, name={name!r})")
    return folder
