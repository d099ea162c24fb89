"""spct_tiny at test size on a mesh of eight devices, for test_hosts.py: one host or two."""


def get_config(arg: str = ""):
    from experiments import spct_tiny

    config = spct_tiny.get_config()
    config.stages = ("rft", "rl")
    config.tensorboard = False
    config.export = False
    config.mesh = dict(data=2, fsdp=2, tensor=2)
    config.model_overrides.update(d_model=32, d_ff=32, head_dim=8, num_layers=2)
    config.data.general_items = 40
    config.batch_size = 8
    config.rft.update(steps=4, warmup_steps=2, comparisons=40, save_every=2)
    config.rl.update(steps=20, prompts=4, max_new_tokens=12, length_buckets=2, save_every=5)
    if arg:
        config.rl.steps = int(arg)
    return config
