"""What the engine computes on."""


def is_cpu() -> bool:
    """Whether the engine computes on CPUs."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
