"""One of two processes of a job: loads a folder over eight devices, and saves it.

    python one_of_two.py INDEX PORT FOLDER OUT

Prints {"read": bytes read, "file": bytes of the file, "equal": whether the values are equal}.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")


def main(index: str, port: str, folder: str, out: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index), initialization_timeout=240)
    from toys import GEMMA2, tensors

    from grm_jax.checkpoints import open_checkpoint, save
    from grm_jax.checkpoints.loading import load_model
    from grm_jax.sharding import make_mesh

    reader = open_checkpoint(folder)
    model = load_model(reader, reader.model_config(), make_mesh(fsdp=4, tensor=2))
    table = model.embedder.table_VxD[...]
    expected = tensors(GEMMA2)["model.embed_tokens.weight"]
    equal = all(
        np.array_equal(shard.data, expected[shard.index]) for shard in table.addressable_shards
    )
    save(model, out, like=folder)
    file_bytes = reader.files[0].size - reader.files[0].data_start
    print(json.dumps({"read": reader.bytes_read, "file": file_bytes, "equal": equal}))


if __name__ == "__main__":
    main(*sys.argv[1:])
