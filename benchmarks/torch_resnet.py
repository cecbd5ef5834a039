"""The same residual network in PyTorch, with the same parameter names, for minivit to be compared with."""

import torch
import torch.nn.functional as F
from torch import nn

from minivit.models import ResNet


class TorchResNet(nn.Module):
    """A copy of a minivit ResNet for small images: a 3 × 3 stem, basic blocks, shortcuts without parameters."""

    def __init__(self, model: ResNet):
        super().__init__()
        state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
        width, channels = state["conv1.weight"].shape[:2]
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.stages = list(model.stages)
        for stage in self.stages:
            blocks = []
            for i in range(len(getattr(model, stage))):
                channels, out = width, len(state[f"{stage}.{i}.conv1.weight"])
                blocks.append(TorchBlock(channels, out, stride=1 if channels == out else 2))
                width = out
            setattr(self, stage, nn.Sequential(*blocks))
        self.fc = nn.Linear(width, len(state["fc.bias"]))
        self.load_state_dict(state)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(x.mean((2, 3)))


class TorchBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.stride, self.padding = stride, (out - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)
