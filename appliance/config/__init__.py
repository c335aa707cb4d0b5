"""What the owner sets: `appliance.toml` and `network.yaml` as typed settings; errors name file, line, key."""
