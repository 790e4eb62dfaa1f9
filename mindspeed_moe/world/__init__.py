"""The processes of a launch, and a watch over them: what commands that run under torchrun stand on."""
