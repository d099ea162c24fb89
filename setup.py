"""Package metadata. requirements.lock pins the versions that are tested together."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "grm_jax/__init__.py").read_text()).group(1)

setup(
    name="grm_jax",
    version=VERSION,
    description="Generative reward models with principles: judge, train and evaluate on TPUs",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["grm_jax", "grm_jax.*"]),
    include_package_data=True,
    package_data={
        "grm_jax": [
            f"**/*.{suffix}"
            for suffix in ("css", "html", "jinja", "js", "json", "model", "txt", "typed")
        ]
    },
    install_requires=[
        "absl-py>=2.1",
        "confusable-homoglyphs>=3.3",  # data of Unicode TR 39: letters of other scripts
        "etils[epath]>=1.9",
        "filelock>=4.2",
        "flax>=0.12.8",
        "gguf>=0.19",
        "httpx>=0.28",
        "huggingface_hub>=1.0",
        "jax>=0.10.2",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pyarrow>=17",
        "pyyaml>=6.0",
        "rich>=13",
        "safetensors>=0.5",
        "scipy>=1.13",
        "sentencepiece>=0.2.1",
        "tensorstore>=0.1.70",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require={
        # Mixtures and TFDS data sets; the world and files of comparisons need none of them.
        "data": ["seqio>=0.0.20", "tensorflow>=2.20", "tensorflow-datasets>=4.9.9"],
        # gs:// paths where TensorFlow, which reads them too, is not installed.
        "gcs": ["etils[epath-gcs]>=1.9"],
        # grm serve; the adapters of other trainers need none of them.
        "serve": [
            "h11>=0.14",
            "prometheus-client>=0.21",
            "pydantic>=2.7",
            "starlette>=0.40",
            "uvicorn>=0.34",
        ],
        "tensorboard": ["tensorboard>=2.20"],
        "tpu": ["jax[tpu]>=0.10.2; sys_platform == 'linux'"],
        "cuda": ["jax[cuda12]>=0.10.2; sys_platform == 'linux'"],
        "test": [
            "datasets>=4.0",
            "hypothesis>=6.100",
            "import-linter>=2.17",
            "ipykernel>=6.29",
            "jsonschema>=4.23",
            "mypy>=1.15",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "openai>=1.60",
            "pandas>=2.2",
            "psutil>=6",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.11",
            "scikit-learn>=1.5",
        ],
        # Compared against in benchmarks, in a separate environment; grm_jax never imports them.
        "bench": [
            "gemma>=3.3",
            "google-tunix>=0.1.7",
            "peft>=0.21",
            "torch>=2.6",
            "transformers>=5.0",
            "trl>=1.0",
        ],
    },
    entry_points={"console_scripts": ["grm=grm_jax.cli:console"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
