"""The 30 tuned downstream configurations of T-JEPA: six tables by five networks.

Source: the configurations that Thimonier et al. (arXiv 2410.05016) published with their program.
Dropouts have four decimals, learning rates and weight decays four significant digits.
"""

from __future__ import annotations

from dataclasses import replace

from jepa_tabular.downstream import (
    AutoIntConfig,
    DCNv2Config,
    FTTransformerConfig,
    HeadConfig,
    MLPConfig,
    NetConfig,
    ResNetConfig,
    Squeeze,
    TrainingConfig,
)

_LF: Squeeze = "linear_flatten"
_LPF: Squeeze = "linear_per_feature"
_MP: Squeeze = "mean_pool"


def _mlp(squeeze: Squeeze, layers: int, width: int, dropout: float) -> MLPConfig:
    return MLPConfig(squeeze=squeeze, layers=layers, width=width, dropout=dropout)


def _resnet(
    squeeze: Squeeze, blocks: int, width: int, hidden: int, *dropouts: float
) -> ResNetConfig:
    inside, residual = dropouts
    return ResNetConfig(
        squeeze=squeeze,
        blocks=blocks,
        width=width,
        hidden=hidden,
        hidden_dropout=inside,
        residual_dropout=residual,
    )


def _dcnv2(
    squeeze: Squeeze, width: int, cross: int, deep: int, *dropouts: float, stacked: bool = True
) -> DCNv2Config:
    crossed, hidden = dropouts
    return DCNv2Config(
        squeeze=squeeze,
        width=width,
        cross=cross,
        deep=deep,
        cross_dropout=crossed,
        hidden_dropout=hidden,
        stacked=stacked,
    )


def _autoint(squeeze: Squeeze, layers: int, dim: int, *dropouts: float) -> AutoIntConfig:
    attention, residual = dropouts
    return AutoIntConfig(
        squeeze=squeeze,
        layers=layers,
        dim=dim,
        heads=2,
        attention_dropout=attention,
        residual_dropout=residual,
    )


def _fttransformer(
    squeeze: Squeeze, blocks: int, dim: int, heads: int, hidden: int, *dropouts: float
) -> FTTransformerConfig:
    attention, inside, residual = dropouts
    return FTTransformerConfig(
        squeeze=squeeze,
        blocks=blocks,
        dim=dim,
        heads=heads,
        hidden=hidden,
        attention_dropout=attention,
        hidden_dropout=inside,
        residual_dropout=residual,
    )


def _tuned(net: NetConfig, learning_rate: float, weight_decay: float) -> HeadConfig:
    training = TrainingConfig(learning_rate=learning_rate, weight_decay=weight_decay)
    return HeadConfig(net, training)


TUNED: dict[str, dict[str, HeadConfig]] = {
    "adult": {
        "mlp": _tuned(_mlp(_LPF, 13, 162, 0.2311), 1.347e-4, 6.426e-4),
        "resnet": _tuned(_resnet(_LPF, 5, 440, 4 * 440, 0.0417, 0.1367), 8.903e-4, 7.961e-5),
        "dcnv2": _tuned(_dcnv2(_LPF, 524, 9, 3, 0.1476, 0.0431, stacked=False), 1.937e-5, 1.404e-6),
        "autoint": _tuned(_autoint(_LPF, 1, 200, 0.0910, 0.0603), 1.717e-3, 1.782e-7),
        "fttransformer": _tuned(
            _fttransformer(_LF, 8, 128, 16, 32, 0.3426, 0.1027, 0.0847), 1.348e-4, 3.589e-5
        ),
    },
    "helena": {
        "mlp": _tuned(_mlp(_LF, 4, 512, 0.5177), 8.438e-2, 7.972e-4),
        "resnet": _tuned(_resnet(_LF, 10, 256, 128, 0.2687, 0.1091), 2.334e-4, 5.392e-4),
        "dcnv2": _tuned(_dcnv2(_LF, 768, 3, 3, 0.0808, 0.2926), 8.811e-5, 9.33e-4),
        "autoint": _tuned(_autoint(_MP, 6, 128, 0.0629, 0.0553), 5.193e-5, 7.59e-4),
        "fttransformer": _tuned(
            _fttransformer(_LPF, 2, 32, 16, 128, 0.0184, 0.1682, 0.1168), 4.259e-3, 4.819e-4
        ),
    },
    "jannis": {
        "mlp": _tuned(_mlp(_LPF, 13, 498, 0.4923), 7.307e-4, 2.094e-6),
        "resnet": _tuned(_resnet(_LPF, 7, 355, 1 * 355, 0.1367, 0.0049), 4.603e-5, 2.963e-6),
        "dcnv2": _tuned(_dcnv2(_LPF, 704, 1, 1, 0.2578, 0.1111), 4.914e-5, 1.112e-5),
        "autoint": _tuned(_autoint(_LPF, 6, 244, 0.0011, 0.1089), 9.681e-4, 6.086e-5),
        "fttransformer": _tuned(
            _fttransformer(_LF, 2, 64, 16, 256, 0.0934, 0.0614, 0.0971), 1.326e-4, 1.113e-5
        ),
    },
    "aloi": {
        "mlp": _tuned(_mlp(_LF, 4, 313, 0.2331), 4.871e-4, 1.381e-4),
        "resnet": _tuned(_resnet(_LF, 8, 476, 4 * 476, 0.0437, 0.0486), 1.322e-5, 1.322e-6),
        "dcnv2": _tuned(_dcnv2(_LF, 386, 7, 2, 0.0702, 0.0862), 8.791e-5, 1.209e-7),
        "autoint": _tuned(_autoint(_MP, 3, 228, 0.0702, 0.0115), 2.28e-3, 4.667e-4),
        "fttransformer": _tuned(
            _fttransformer(_LF, 10, 256, 8, 64, 0.3246, 0.3277, 0.1151), 8.269e-4, 1.059e-7
        ),
    },
    "california": {
        "mlp": _tuned(_mlp(_LF, 3, 246, 0.0310), 1.191e-5, 1.963e-5),
        "resnet": _tuned(_resnet(_LF, 4, 465, 3 * 465, 0.3134, 0.0018), 5.257e-5, 1.028e-5),
        "dcnv2": _tuned(_dcnv2(_LF, 488, 1, 5, 0.0346, 0.0880), 5.532e-4, 3.637e-4),
        "autoint": _tuned(_autoint(_LF, 8, 238, 0.0901, 0.0710), 2.141e-4, 1.892e-6),
        "fttransformer": _tuned(
            _fttransformer(_LF, 16, 128, 8, 512, 0.0745, 0.1749, 0.0474), 1.172e-3, 1.403e-5
        ),
    },
    "higgs": {
        "mlp": _tuned(_mlp(_LPF, 9, 320, 0.4203), 1.835e-5, 7.477e-4),
        "resnet": _tuned(_resnet(_LPF, 2, 506, 1 * 506, 0.2341, 0.0307), 2.245e-5, 2.948e-6),
        "dcnv2": _tuned(_dcnv2(_LPF, 428, 1, 3, 0.1393, 0.2976, stacked=False), 4.688e-5, 1.211e-4),
        "autoint": _tuned(_autoint(_LPF, 7, 56, 0.0729, 0.0431), 6.508e-4, 5.395e-5),
        "fttransformer": _tuned(
            _fttransformer(_LF, 12, 128, 4, 64, 0.3334, 0.4813, 0.1465), 2.251e-4, 6.937e-5
        ),
    },
}


def as_it_ran(config: HeadConfig) -> HeadConfig:
    """What the official program makes of a configuration, its slips included.

    It keeps the last weights, gives ResNet a cosine of 10 steps whatever the length of the run,
    and reads every written value of "stacked" as true.
    """
    net, half_cosine = config.net, 0
    if isinstance(net, ResNetConfig):
        half_cosine = 10
    if isinstance(net, DCNv2Config):
        net = replace(net, stacked=True)
    training = replace(config.training, compat="official", half_cosine=half_cosine)
    return HeadConfig(net, training)
