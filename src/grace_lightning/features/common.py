"""What the kinds of features share: their interface, standardisation, the graph Laplacian."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from grace_lightning.data import GraphData
from grace_lightning.errors import expect_range
from grace_lightning.graph import GEOMETRY_FEATURES

OnPatches = Callable[[Tensor], Tensor]  # changes patches, (n, C, size, size) to the same


class Features(nn.Module):
    """The first layer of a network: turns images and graphs into features of nodes and edges.

    Parameters
    ----------
    scale : pixels, width of a filament
    flatten : filament widths; local mean and deviation of this Gaussian, which is ``sigma`` pixels wide, are removed
        from the image before it comes here. None: mean and deviation of the whole image
    node_features : number of features of a node; if ``laplacian``, as many, times the graph Laplacian, are appended
    lengths : further ones by their key in the configuration, filament widths, to be checked
    """

    frozen = False  # whether nothing in them is trained: augmentation draws from a few fixed views, which are kept
    edge_features = GEOMETRY_FEATURES

    def __init__(
        self, scale: float, flatten: float | None, node_features: int, laplacian: bool = False, **lengths: float
    ) -> None:
        super().__init__()
        expect_range("features.scale", scale, 1, 1000)
        for key, length in {"flatten": 1.0 if flatten is None else flatten, **lengths}.items():
            expect_range(f"features.{key}", length, 0.1, 50)
        self.scale, self.laplacian = scale, laplacian
        self.sigma = None if flatten is None else flatten * scale
        self.node_features = node_features * (2 if laplacian else 1)
        self.node_scale = Standardise(self.node_features)
        self.edge_scale = Standardise(GEOMETRY_FEATURES)

    def of_image(self, image: Tensor, pos: Tensor, augment: OnPatches | None, seed: int) -> Tensor:
        """Return raw features of the nodes of one image, (n, F) float32; ``seed`` is of its augmentation."""
        raise NotImplementedError

    def nodes(self, data: GraphData, augment: OnPatches | None = None) -> Tensor:
        """Return the node features before standardisation, (N, F) float32; ``augment`` changes the patches."""
        images = zip(data.images(), data.seeds, strict=True)
        x = torch.cat([self.of_image(image, pos, augment, seed) for (image, pos, _), seed in images])
        x = x.to(data.edge_attr.device)
        return with_laplacian(x, data.edge_index) if self.laplacian else x

    def fit(self, data: GraphData) -> None:
        """Take an image of the training set, not augmented, into the standardisation."""
        self.node_scale.update(self.nodes(data))
        self.edge_scale.update(data.edge_attr)

    def forward(self, data: GraphData, augment: OnPatches | None = None) -> tuple[Tensor, Tensor]:
        """Return node features (N, F) and edge features (E, G), float32; ``augment`` changes the patches of nodes."""
        return self.node_scale(self.nodes(data, augment)), self.edge_scale(data.edge_attr)


def with_laplacian(x: Tensor, edges: Tensor) -> Tensor:
    """Append to features (N, F) the graph Laplacian (degrees minus adjacency) times them: (N, 2 F)."""
    difference = x[edges[0]] - x[edges[1]]
    return torch.cat([x, torch.zeros_like(x).index_add(0, edges[0], difference).index_add(0, edges[1], -difference)], 1)


class Standardise(nn.Module):
    """Removes the training set's mean and divides by its deviation, (M, F); both are part of the checkpoint."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean, self.deviation = nn.Buffer(torch.zeros(features)), nn.Buffer(torch.ones(features))
        # in double precision, so that many images add up
        self._count = 0
        self._mean, self._square = torch.zeros(2, features, dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Take further values (M, F) into mean and deviation; a feature that never changes keeps deviation 1."""
        if not len(values):
            return
        square, mean = torch.var_mean(values.double().cpu(), dim=0, correction=0)
        share = len(values) / (self._count + len(values))
        self._square += share * (square - self._square + (1 - share) * (mean - self._mean) ** 2)
        self._mean += share * (mean - self._mean)
        self._count += len(values)
        deviation = self._square.sqrt()
        self.mean.copy_(self._mean)
        self.deviation.copy_(torch.where(deviation > 1e-6 * (1 + self._mean.abs()), deviation, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation
