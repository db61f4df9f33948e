"""torchvision's architectures, narrow and shallow: the graphs of the full-size networks with few weights.

A network is made by its constructor if that takes widths; else the object is filled with narrow layers, and
torchvision's `forward` runs it.
"""

import importlib

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import convnext, efficientnet, mobilenetv2, mobilenetv3
from torchvision.models import regnet, resnet, shufflenetv2, swin_transformer, vgg, vision_transformer

# torchvision.models exports functions under the names of these modules.
densenet, googlenet, inception, squeezenet = (
    importlib.import_module("torchvision.models." + name)
    for name in ("densenet", "googlenet", "inception", "squeezenet")
)
CLASSES = 10


def bare(cls):
    """An instance of a module class, made without its constructor."""
    made = cls.__new__(cls)
    nn.Module.__init__(made)
    return made


def small_resnet(block, blocks, **kwargs):
    net = bare(resnet.ResNet)
    net._norm_layer, net.groups, net.base_width, net.dilation = nn.BatchNorm2d, 1, 64, 1
    net.inplanes = 8
    net.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    net.bn1, net.relu, net.maxpool = nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    net.layer1 = net._make_layer(block, 8, blocks[0])
    net.layer2 = net._make_layer(block, 8, blocks[1], stride=2)
    net.layer3 = net._make_layer(block, 12, blocks[2], stride=2)
    net.layer4 = net._make_layer(block, 16, blocks[3], stride=2)
    net.avgpool, net.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16 * block.expansion, CLASSES)
    return net


def resnet_basic():
    return small_resnet(resnet.BasicBlock, [1, 1, 1, 1])


def resnet_bottleneck():
    return small_resnet(resnet.Bottleneck, [1, 1, 1, 1])


def small_vgg(config, batch_norm):
    net = bare(vgg.VGG)
    net.features, net.avgpool = vgg.make_layers(config, batch_norm=batch_norm), nn.AdaptiveAvgPool2d((2, 2))
    width = [c for c in config if c != "M"][-1]
    net.classifier = nn.Sequential(nn.Linear(width * 4, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES))
    return net


def vgg_bn():
    return small_vgg([8, "M", 12, "M", 16, 16, "M", 16, "M"], True)


def vgg_plain():
    return small_vgg([8, "M", 12, "M", 16, 16, 16, "M"], False)


def densenet_small():
    return densenet.DenseNet(growth_rate=4, block_config=(2, 2, 2), num_init_features=8, bn_size=2, num_classes=CLASSES)


class GoogLeNetLike(nn.Module):
    """The stem, three inception blocks and the head of GoogLeNet."""

    def __init__(self):
        super().__init__()
        self.conv1 = googlenet.BasicConv2d(3, 8, kernel_size=7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = googlenet.BasicConv2d(8, 8, kernel_size=1)
        self.inception3a = googlenet.Inception(8, 4, 4, 8, 4, 4, 4)
        self.inception3b = googlenet.Inception(20, 4, 4, 8, 4, 4, 4)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = googlenet.Inception(20, 8, 4, 8, 4, 4, 4)
        self.avgpool, self.dropout, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(0.2), nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.conv2(self.maxpool1(self.conv1(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))


class InceptionLike(nn.Module):
    """Inception v3's stem, a block with average pooling, a grid reduction and a block with nested concatenation."""

    def __init__(self):
        super().__init__()
        conv = inception.BasicConv2d
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = conv(3, 8, kernel_size=3, stride=2), conv(8, 8, kernel_size=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.branch1x1 = conv(8, 8, kernel_size=1)
        self.branch3x3_1 = conv(8, 6, kernel_size=1)
        self.branch3x3_2a, self.branch3x3_2b = (
            conv(6, 6, kernel_size=k, padding=p) for k, p in (((1, 3), (0, 1)), ((3, 1), (1, 0)))
        )
        self.branch_pool = conv(8, 4, kernel_size=1)
        self.reduce = conv(24, 12, kernel_size=3, stride=2)
        self.Mixed_7c = conv(36, 16, kernel_size=1)
        self.avgpool, self.dropout, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.maxpool1(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        one, three = self.branch1x1(x), self.branch3x3_1(x)
        three = torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1)
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        x = torch.cat([one, three, pooled], 1)
        x = torch.cat([self.reduce(x), F.max_pool2d(x, kernel_size=3, stride=2)], 1)
        return self.fc(torch.flatten(self.dropout(self.avgpool(self.Mixed_7c(x))), 1))


def squeezenet_small():
    net = bare(squeezenet.SqueezeNet)
    net.num_classes = CLASSES
    net.features = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True), squeezenet.Fire(8, 4, 8, 8),
        nn.MaxPool2d(3, 2, ceil_mode=True), squeezenet.Fire(16, 4, 12, 12))
    net.classifier = nn.Sequential(
        nn.Dropout(), nn.Conv2d(24, CLASSES, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
    )
    return net


def shufflenet_small():
    return shufflenetv2.ShuffleNetV2([2, 2, 1], [8, 16, 24, 32, 32], num_classes=CLASSES)


def regnet_small():
    blocks = regnet.BlockParams([1, 1, 1], [8, 16, 24], [8, 8, 8], [1.0, 1.0, 1.0], [2, 2, 2], se_ratio=0.25)
    return regnet.RegNet(blocks, num_classes=CLASSES, stem_width=8)


def mobilenet_v2_small():
    net = mobilenetv2.MobileNetV2(CLASSES, inverted_residual_setting=[[1, 8, 1, 1], [3, 8, 2, 2], [3, 16, 2, 2]])
    net.features[0] = mobilenetv2.Conv2dNormActivation(3, 8, stride=2, activation_layer=nn.ReLU6)
    net.features[1] = mobilenetv2.InvertedResidual(8, 8, 1, 1)
    net.features[-1] = mobilenetv2.Conv2dNormActivation(16, 32, kernel_size=1, activation_layer=nn.ReLU6)
    net.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, CLASSES))
    return net


def mobilenet_v3_small():
    config = mobilenetv3.InvertedResidualConfig
    settings = [config(8, 3, 8, 8, True, "RE", 2, 1, 1.0), config(8, 3, 16, 16, False, "HS", 2, 1, 1.0),
                config(16, 5, 24, 16, True, "HS", 1, 1, 1.0)]
    net = mobilenetv3.MobileNetV3(settings, last_channel=32, num_classes=CLASSES)
    return net


def efficientnet_small():
    config = efficientnet.MBConvConfig
    settings = [
        config(1, 3, 1, 8, 8, 1, 1.0, 1.0),
        config(3, 3, 2, 8, 12, 2, 1.0, 1.0),
        config(3, 5, 2, 12, 16, 1, 1.0, 1.0),
    ]
    return efficientnet.EfficientNet(settings, dropout=0.2, last_channel=32, num_classes=CLASSES)


def convnext_small():
    config = convnext.CNBlockConfig
    return convnext.ConvNeXt([config(8, 16, 1), config(16, 24, 1), config(24, None, 1)], num_classes=CLASSES)


def vit_small():
    return vision_transformer.VisionTransformer(
        32, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES
    )


def swin_small():
    return swin_transformer.SwinTransformer([4, 4], 8, [2, 1], [2, 2], [3, 3], num_classes=CLASSES)
