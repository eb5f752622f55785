"""Full-size models for the benches, made by script. `zoo` lists them, the architectures are one file each."""
