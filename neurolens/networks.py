"""The networks that neurolens defines itself. Their tensor names are those of the references' checkpoints."""

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional


class DigitsConvNet(nn.Module):
    """A small network for 8x8 grey images: three 3x3 convolutions with batch norm, two poolings, one linear layer.

    Input (B, 1, 8, 8), output (B, classes); 15 418 parameters at 10 classes and width 32.
    """

    def __init__(self, classes: int = 10, *, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width // 2, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(width * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = self.pool(self.relu(self.bn3(self.conv3(x))))
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


class ShapesConvNet(nn.Module):
    """A small network for colour images: four 3x3 convolutions with batch norm, three poolings, one linear layer.

    Input (B, 3, H, W) of 32 pixels or more, output (B, classes); 61 078 parameters at 6 classes and width 16. Maps of
    `block2`, `block3` and `block4` have a half, a quarter and an eighth of the sides of the image. The linear layer
    takes each unit's maximum over the image: that something is there counts, not how much of it. Borders are reflected,
    so that no unit can find them.
    """

    def __init__(self, classes: int = 6, *, width: int = 16) -> None:
        super().__init__()
        self.block1 = self._block(3, width)
        self.block2 = self._block(width, 2 * width)
        self.block3 = self._block(2 * width, 4 * width)
        self.block4 = self._block(4 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(4 * width, classes)

    @staticmethod
    def _block(inputs: int, width: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, width, 3, padding=1, padding_mode="reflect", bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, classes)."""
        for block in (self.block1, self.block2, self.block3):
            x = self.pool(block(x))
        out: Tensor = self.fc(self.block4(x).amax(dim=(2, 3)))
        return out


class _Block(nn.Module):
    """The basic block of He et al. 2016, with its projection named ``shortcut``."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return functional.relu(out)


class CifarResNet18(nn.Module):
    """ResNet-18 for 32x32 images: 3x3 stem without bias or pooling, projections ``shortcut``, head ``linear``.

    Input (B, 3, H, W), output (B, classes). The tensor names are those of the widespread CIFAR implementation that
    Ravikumar et al. 2025 train.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.linear(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))
        return out


def cifar_resnet18_incremental(classes: int = 100, *, bias: str = "all") -> nn.Module:
    """ResNet-18 of the class-incremental CIFAR-100 runs: torchvision's, with a 3x3 stem with bias and no pooling.

    Input (B, 3, H, W), output (B, classes); projections are named ``downsample`` and the head ``fc``.

    Parameters
    ----------
    bias
        ``"all"``: every convolution has one, as in the files that Dohare et al. 2024 write; ``"stem"``: only the first.

    Raises
    ------
    ValueError
        If ``bias`` is neither.
    """
    if bias not in ("all", "stem"):
        raise ValueError(f"bias is {bias!r}; it is 'all' or 'stem'")
    network = torchvision.models.resnet18(weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=True)
    network.maxpool = nn.Identity()
    for convolution in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        if bias == "all" and convolution.bias is None:
            convolution.bias = nn.Parameter(torch.empty(convolution.out_channels))
            bound = convolution.weight[0].numel() ** -0.5
            nn.init.uniform_(convolution.bias, -bound, bound)
    module: nn.Module = network
    return module
