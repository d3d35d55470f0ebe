"""Networks that make images: adversarial, variational, diffusion, style transfer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

from .case import Case, generator_case, normal, weighted


class Adversarial(nn.Module):
    """Generator and discriminator, with the loss of both."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    def case(self, *noise: int) -> Case:
        def loss(number: int) -> Tensor:
            fake = self.generator(normal(number, 4, *noise))
            real = normal(number + 50, *fake.shape)
            return weighted(number, self.discriminator(fake), self.discriminator(real))

        return self, loss


def dcgan() -> Case:
    generator = nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(True),
        nn.ConvTranspose2d(6, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(6, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 1, 0, bias=False), nn.Flatten(),
    )  # fmt: skip
    return Adversarial(generator, discriminator).case(6, 1, 1)


def sngan(norm: Any = spectral_norm) -> Case:
    generator = nn.Sequential(
        nn.Linear(6, 8 * 16), nn.Unflatten(1, (8, 4, 4)), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, 1, 1), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        norm(nn.Conv2d(3, 6, 3, 1, 1)), nn.LeakyReLU(0.1), norm(nn.Conv2d(6, 6, 4, 2, 1)), nn.LeakyReLU(0.1),
        norm(nn.ConvTranspose2d(6, 4, 3)), nn.Flatten(), norm(nn.Linear(4 * 36, 1)),
    )  # fmt: skip
    return Adversarial(generator, discriminator).case(6)


def sngan_hooks() -> Case:
    return sngan(hooked_spectral_norm)


class ModulatedConv(nn.Module):
    """StyleGAN2: the weight is scaled by the style and normalized per output channel."""

    def __init__(self, inputs: int, outputs: int, style: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.modulation, self.demodulate, self.scale = nn.Linear(style, inputs), demodulate, (inputs * 9) ** -0.5
        self.noise = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.eps = 1e-8

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        weight = self.scale * self.weight * self.modulation(style).view(batch, 1, channels, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + self.eps).view(batch, -1, 1, 1, 1)
        weight = weight.view(-1, *weight.shape[2:])
        y = F.conv2d(x.reshape(1, -1, height, width), weight, padding=1, groups=batch).view(batch, -1, height, width)
        return F.leaky_relu(y + self.noise * torch.ones_like(y[:, :1]) + self.bias.view(1, -1, 1, 1), 0.2) * 2**0.5


class StyleGAN2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.LeakyReLU(0.2))
        self.constant = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.conv1, self.conv2 = ModulatedConv(6, 6, 8), ModulatedConv(6, 6, 8)
        self.to_rgb = ModulatedConv(6, 3, 8, demodulate=False)
        self.eps = 1e-8

    def forward(self, z: Tensor) -> Tensor:
        z = z * torch.rsqrt(z.pow(2).mean(1, keepdim=True) + self.eps)
        style = self.mapping(z)
        x = self.conv1(self.constant.repeat(len(z), 1, 1, 1), style)
        x = self.conv2(F.interpolate(x, scale_factor=2, mode="bilinear"), style)
        return self.to_rgb(x, style)


def stylegan2() -> Case:
    return generator_case(StyleGAN2(), 6)


class PixelNormNet(nn.Module):
    """ProGAN: every pixel is divided by its length over channels; minibatch deviation in the discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.Conv2d(6, 6, 3, 1, 1)
        self.last, self.out, self.eps = nn.Conv2d(7, 6, 3, 1, 1), nn.Conv2d(6, 1, 4), 1e-8

    def pixel_norm(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pixel_norm(F.leaky_relu(self.conv1(x), 0.2))
        x = self.pixel_norm(F.leaky_relu(self.conv2(x), 0.2))
        deviation = torch.sqrt(x.var(0, unbiased=False) + self.eps).mean().expand(len(x), 1, *x.shape[2:])
        return self.out(F.leaky_relu(self.last(torch.cat([x, deviation], 1)), 0.2))


def progan() -> Case:
    return generator_case(PixelNormNet(), 3, 6, 6)


class AdaIN(nn.Module):
    """Statistics written out: content normalized per sample and channel, style's mean and deviation put on it."""

    def __init__(self) -> None:
        super().__init__()
        self.content, self.style = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(3, 6, 3, 1, 1, bias=False)
        self.decoder, self.eps = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(6, 3, 3)), 1e-5

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.view(*x.shape[:2], -1)
        return flat.mean(2).view(*x.shape[:2], 1, 1), (flat.var(2) + self.eps).sqrt().view(*x.shape[:2], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        content, style = self.content(x), self.style(x.flip(0))
        (mean, deviation), (style_mean, style_deviation) = self.statistics(content), self.statistics(style)
        normal = (content - mean.expand_as(content)) / deviation.expand_as(content)
        return self.decoder(F.relu(normal * style_deviation.expand_as(normal) + style_mean.expand_as(normal)))


def adain() -> Case:
    return generator_case(AdaIN(), 3, 6, 6)


class SPADE(nn.Module):
    """Normalization with gains and biases that a network makes from a map, at every position."""

    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.shared = norm, nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU())
        self.gamma, self.beta = nn.Conv2d(6, width, 3, padding=1), nn.Conv2d(6, width, 3, padding=1)

    def forward(self, x: Tensor, segments: Tensor) -> Tensor:
        y = self.shared(F.interpolate(segments, size=x.shape[2:], mode="nearest"))
        return self.norm(x) * (1 + self.gamma(y)) + self.beta(y)


class SPADENet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 6, 3, padding=1)
        self.norm0, self.norm1 = SPADE(6, nn.BatchNorm2d(6, affine=False)), SPADE(4, nn.InstanceNorm2d(4))
        self.norm_s = SPADE(6, nn.BatchNorm2d(6, affine=False))
        self.conv0, self.conv1 = spectral_norm(nn.Conv2d(6, 4, 3, 1, 1)), nn.Conv2d(4, 3, 3, 1, 1)
        self.conv_s = nn.Conv2d(6, 3, 1, bias=False)

    def forward(self, segments: Tensor) -> Tensor:
        x = self.conv_in(F.interpolate(segments, size=(6, 6)))
        y = self.conv0(F.leaky_relu(self.norm0(x, segments), 0.2))
        y = self.conv1(F.leaky_relu(self.norm1(y, segments), 0.2))
        return self.conv_s(self.norm_s(x, segments)) + y


def spade() -> Case:
    return generator_case(SPADENet(), 2, 12, 12)


class ConditionalNorm(nn.Module):
    """BigGAN's class-conditional BatchNorm, and FiLM."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.film = nn.Linear(6, 6 * 16), nn.Conv2d(6, 6, 3, 1, 1), nn.Linear(6, 12)
        self.bn, self.bn2 = nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, affine=False)
        self.gain, self.bias = nn.Embedding(5, 6), nn.Embedding(5, 6)
        self.shared, self.linear = nn.Embedding(5, 4), spectral_norm(nn.Linear(4, 6, bias=False))
        self.out = nn.Conv2d(6, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        classes = torch.arange(len(z)) % 5
        x = self.bn(self.first(z).view(-1, 6, 4, 4))
        x = F.relu(x * (1 + self.linear(self.shared(classes)))[:, :, None, None] + self.bias(classes)[:, :, None, None])
        x = self.bn2(self.conv(F.interpolate(x, scale_factor=2))) * self.gain(classes).view(-1, 6, 1, 1)
        gamma, beta = self.film(z).chunk(2, 1)
        return torch.tanh(self.out(F.relu(x * gamma[..., None, None] + beta[..., None, None])))


def conditional_norm() -> Case:
    return generator_case(ConditionalNorm(), 6)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8),
            nn.LeakyReLU(), nn.Flatten(),
        )  # fmt: skip
        self.mu, self.log_var, self.start = nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(4, 32)
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (8, 2, 2)),
            nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(),
            nn.ConvTranspose2d(6, 6, 3, 2, 1, output_padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(),
            nn.Conv2d(6, 3, 3, 1, 1),
        )  # fmt: skip


def vae() -> Case:
    model = VAE()

    def loss(number: int) -> Tensor:
        x = normal(number, 6, 3, 8, 8)
        features = model.encoder(x)
        mu, log_var = model.mu(features), model.log_var(features)
        z = normal(number + 9, *mu.shape) * torch.exp(0.5 * log_var) + mu
        divergence = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), 1), 0)
        return F.mse_loss(model.decoder(model.start(z)).tanh(), x) + 0.1 * divergence

    return model, loss


class VectorQuantizer(nn.Module):
    """VQ-VAE: nearest code, straight-through gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.codes = nn.Embedding(7, 4)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1)
        )


def vqvae() -> Case:
    model = VectorQuantizer()

    def loss(number: int) -> Tensor:
        x = normal(number, 4, 3, 8, 8)
        z = model.encoder(x).permute(0, 2, 3, 1).contiguous()
        nearest = torch.cdist(z.detach().view(-1, 4), model.codes.weight.detach()).argmin(1)
        quantized = model.codes(nearest).view(z.shape)
        commitment = F.mse_loss(quantized.detach(), z) + F.mse_loss(quantized, z.detach())
        quantized = z + (quantized - z).detach()
        return F.mse_loss(model.decoder(quantized.permute(0, 3, 1, 2)).tanh(), x) + commitment

    return model, loss


class StyleTransfer(nn.Module):
    """Johnson's network: reflection padding, InstanceNorm, residual blocks, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.in1 = self.padded(3, 6, 5), nn.InstanceNorm2d(6, affine=True)
        self.conv2, self.in2 = self.padded(6, 8, 3, 2), nn.InstanceNorm2d(8, affine=True)
        self.res1, self.res2 = self.padded(8, 8, 3), self.padded(8, 8, 3)
        self.in3, self.in4 = nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8)
        self.up, self.in5 = self.padded(8, 6, 3), nn.InstanceNorm2d(6, affine=True)
        self.out = self.padded(6, 3, 5)

    @staticmethod
    def padded(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.ReflectionPad2d(kernel // 2), nn.Conv2d(inputs, outputs, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.in2(self.conv2(F.relu(self.in1(self.conv1(x))))))
        x = self.in4(self.res2(F.relu(self.in3(self.res1(x))))) + x
        return self.out(F.relu(self.in5(self.up(F.interpolate(x, scale_factor=2, mode="nearest")))))


def style_transfer() -> Case:
    return generator_case(StyleTransfer(), 3, 8, 8)
