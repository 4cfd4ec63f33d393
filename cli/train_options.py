"""Options of `bnvuln train` that say what is trained."""

from __future__ import annotations

import click

from . import options as o

_data = o.option("Data")
_model = o.option("Model")
_normalization = o.option("Normalization")
_training = o.option("Training")
_adversarial = o.option("Adversarial training")

_OPTIONS = (
    _data(
        "--data",
        "dataset",
        default="mnist",
        show_default=True,
        metavar="NAME",
        help="Data set: mnist, toy, another name (bnvuln data list), FILE.npz, or folder:PATH.",
    ),
    _data(
        "--width", type=int, metavar="N", help="Image width in pixels, >= the native one (bilinear).  [default: native]"
    ),
    _data("--limit", type=int, metavar="N", help="Number of training examples.  [default: all]"),
    _data("--balanced", is_flag=True, help="Equally many examples of each class, with --limit."),
    _data("--classes", type=o.INTEGERS, help="Numbers of the classes that are used, e.g. 3,7.  [default: all]"),
    _data(
        "--subset-seed",
        older=["--draw"],
        type=click.Choice(["fixed", "seed"]),
        help="Examples of --limit: the same for every seed, or other ones for each.  [default: fixed]",
    ),
    _data(
        "--validation",
        type=int,
        metavar="N",
        help="Training examples that are held out to choose the epoch.  [default: 5000; of your own data with fewer, "
        "a tenth; none where they have a validation split]",
    ),
    _model(
        "--arch",
        default="mlp",
        show_default=True,
        metavar="NAME",
        help="Architecture: linear, mlp, deep, vgg8, vgg11, vgg13, vgg16, vgg19, resnet20, resnet32, resnet44, "
        "resnet56, resnet110, wrn, nearest_centroid.",
    ),
    _model(
        "--hidden",
        type=o.INTEGERS,
        help="Units of each hidden layer of mlp.  [default: two of half the input dimension]",
    ),
    _model(
        "--depth",
        type=int,
        metavar="N",
        help="Hidden layers of deep, or layers of wrn (6 n + 4).  [default: 10; wrn 28]",
    ),
    _model("--widening", type=int, metavar="N", help="Widening factor of wrn.  [default: 10]"),
    _model("--units", type=int, metavar="N", help="Units of each layer of deep.  [default: 384]"),
    _model(
        "--normalized",
        type=o.INTEGERS,
        help="Hidden layers of mlp, from 0, that get the normalization.  [default: 0]",
    ),
    _model("--one-logit", is_flag=True, help="One output w x + b of linear, for two classes, instead of two."),
    _model(
        "--init",
        metavar="NAME",
        help="Initialization: torch, he, zeros (linear).  [default: torch; deep and convolutional: he]",
    ),
    _model("--no-standardize", is_flag=True, help="Pixels as they are as the model's input."),
    _normalization(
        "--normalization",
        default="batch",
        show_default=True,
        metavar="NAME",
        help="batch, none, l2 (none plus --weight-decay), group, layer; for convolutional nets instance, ws_group "
        "(weight standardization and group), frn (filter response); for residual nets fixup.",
    ),
    _normalization("--no-bn", is_flag=True, help="The same as --normalization none."),
    _normalization("--c", type=o.NUMBER, help="Constant c under the square root.  [default: 1e-5; frn 1e-6]"),
    _normalization("--groups", type=int, metavar="N", help="Groups of channels of group and ws_group.  [default: 8]"),
    _normalization("--bn-momentum", type=o.NUMBER, help="Weight of BN's old statistics.  [default: 0.9]"),
    _normalization("--no-affine", is_flag=True, help="BN without gamma and beta."),
    _normalization("--synchronized", is_flag=True, help="BN statistics over all replicas."),
    _training("--epochs", type=int, metavar="N", help="Number of epochs.  [default: 20; convolutional: 5]"),
    _training("--batch-size", type=int, metavar="N", help="Examples of a step, over all devices.  [default: 128]"),
    _training("--optimizer", metavar="NAME", help="sgd, adam or adamw.  [default: sgd]"),
    _training("--lr", type=o.NUMBER, help="Learning rate.  [default: 0.01]"),
    _training("--momentum", type=o.NUMBER, help="Momentum of sgd.  [default: 0; convolutional: 0.9]"),
    _training("--nesterov", is_flag=True, help="Nesterov's momentum."),
    _training("--betas", type=o.NUMBERS, help="Decay rates of adam and adamw.  [default: 0.9,0.999]"),
    _training(
        "--schedule", metavar="NAME", help="Learning rate schedule: constant, step, cosine.  [default: constant]"
    ),
    _training("--lr-drops", type=o.INTEGERS, help="Epochs, from 0, at which --schedule step lowers the learning rate."),
    _training(
        "--lr-drop-factor",
        type=o.NUMBER,
        default=0.1,
        show_default=True,
        help="Factor that the learning rate is multiplied by at each of --lr-drops.",
    ),
    _training("--warmup", type=o.NUMBER, help="Epochs in which the learning rate rises to --lr.  [default: 0]"),
    _training(
        "--label-smoothing", type=o.NUMBER, help="Share of the target that is spread over all classes.  [default: 0]"
    ),
    _training(
        "--weight-decay",
        type=o.NUMBER,
        default=0.0,
        help="lambda; lambda w is added to the gradient (adamw: decoupled).  [default: 0]",
    ),
    _training(
        "--decay-on",
        type=click.Choice(["kernels", "all"]),
        default="kernels",
        show_default=True,
        help="Weights with weight decay.",
    ),
    _training(
        "--select",
        type=click.Choice(["best", "last"]),
        default="best",
        show_default=True,
        help="Epoch that is kept: the best by validation accuracy, or the last.",
    ),
    _training(
        "--crop-pad", type=int, metavar="N", help="Random crops of the images with N black pixels around (e.g. 4)."
    ),
    _training("--flip", is_flag=True, help="Random flips of the images, left and right."),
    _training(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        show_default=True,
        help="Seed of initial weights, order and augmentation.",
    ),
    _adversarial(
        "--adversarial",
        type=click.Choice(["pgd", "bim", "fgsm"]),
        help="Attack on the training examples: pgd (random start), bim (starts at the image), fgsm (one step).",
    ),
    _adversarial("--adversarial-eps", type=o.NUMBER, help="Radius of the eps ball, e.g. 8/255; required."),
    _adversarial(
        "--adversarial-ord", type=click.Choice(["inf", "2"]), help="Norm of the perturbation.  [default: inf]"
    ),
    _adversarial(
        "--adversarial-unit",
        type=click.Choice(["pixel", "standardized"]),
        help="Unit of eps and step size.  [default: pixel]",
    ),
    _adversarial(
        "--adversarial-box", type=o.RANGE, metavar="LOW,HIGH|none", help="Range of pixels, or none.  [default: 0,1]"
    ),
    _adversarial("--adversarial-steps", type=int, metavar="N", help="Gradient steps.  [default: 10; fgsm 1]"),
    _adversarial(
        "--adversarial-step-size",
        type=o.NUMBER,
        help="Step size, in --adversarial-unit.  [default: 2.5 eps / steps; fgsm eps]",
    ),
    o.option("Config")(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A field of the config, e.g. train.epochs=3."
    ),
)


train_options = o.options(_OPTIONS)
