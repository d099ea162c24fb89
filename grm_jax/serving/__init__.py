"""The judge as a reward: `score` in this process, `grm serve` over HTTP, adapters for trainers."""
