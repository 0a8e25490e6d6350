"""The frozen encoders: the vision tower, and the autoencoder with its decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor, nn

from omnipersona_cli.family.pictures import Encoded
from op_bagel.pictures import Grid, patchify, rgb, to_tensor, unpatchify
from op_lance.config import TowerConfig
from op_lance.pictures import Sizes, for_tower, merged, tower_patches
from op_lance.tower import see
from op_lance.vae import AutoEncoder, to_pixels


class Encoders:
    """What becomes of pictures, at ``sizes``. ``need`` reads the autoencoder's weights where they
    are not there yet."""

    def __init__(
        self,
        tower: nn.Module,
        vae: AutoEncoder,
        *,
        config: TowerConfig,
        device: torch.device,
        need: Callable[[], None],
    ) -> None:
        self.tower, self.vae = tower.requires_grad_(False), vae.requires_grad_(False)
        self.config, self.device, self.need = config, device, need
        self.encoded = 0
        """How many pictures the tower or the autoencoder has encoded so far."""
        self._look, self._reduce = Encoded(self._looked), Encoded(self._reduced)

    def asked(self, image: Image, sizes: Sizes) -> tuple[Tensor, Grid]:
        """Features [n, D] of a picture that is asked about, in its bucket, and their grid."""
        return self._seen(sizes.asked.apply(image))

    def edited(self, image: Image, sizes: Sizes) -> tuple[Tensor, Grid]:
        """Features [n, D] of a picture that is edited, in its own shape, and their grid."""
        return self._seen(sizes.edited.apply(image))

    def encode(self, image: Image, sizes: Sizes) -> tuple[Tensor, Grid]:
        """Latent tokens [n, latent width]; the encoder's mean, so that seeds decide alone."""
        return patchify(self._reduce(sizes.latent.apply(rgb(image))), 1)

    def _seen(self, picture: Image) -> tuple[Tensor, Grid]:
        patch = self.config.patch_size
        grid = (picture.height // patch, picture.width // patch)
        return self._look(picture), merged(grid, self.config)

    # not inference tensors: a lesson may need them for a gradient later

    @torch.inference_mode(False)
    @torch.no_grad()
    def _looked(self, picture: Image) -> Tensor:
        self.encoded += 1
        patches, grid = tower_patches(for_tower(picture), self.config)
        return see(self.tower, patches, [grid])[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _reduced(self, picture: Image) -> Tensor:
        self.need()
        self.encoded += 1
        return self.vae.encode(to_tensor(picture)[None].to(self.device))[0]

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: Grid) -> Image:
        """The picture of latent tokens [n, latent width]."""
        self.need()
        latents = unpatchify(tokens[None], grid, 1)
        return images.fromarray(to_pixels(self.vae.decode(latents))[0].cpu().numpy())
