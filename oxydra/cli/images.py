"""`images build`: the images of the container tier, by `guest/build-images`."""

from __future__ import annotations

import argparse

from oxydra.errors import OxydraError


def build(options: argparse.Namespace) -> int:
    """Passes everything on, `--help` too. What `[guest_images] extra_packages` lists is in the
    shell's image unless the arguments say otherwise.
    """
    from oxydra import config
    from oxydra.tiers import images

    arguments: list[str] = options.arguments
    try:
        settings = config.load(options.config, options.user, need_user=False)
        extra = settings.runner.guest_images.extra_packages
    except OxydraError:
        if options.config is not None:
            raise
        extra = ()  # nothing is configured yet
    if extra and not any(word.startswith("--extra-packages") for word in arguments):
        arguments = ["--extra-packages", ",".join(extra), *arguments]
    return images.build(arguments)
