"""Every field of a config, with its default. The other files here change what their task needs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    # Data: digits, procedural, mnist, fashion_mnist, cifar10 or cifar100; or one's own, module:function
    # (docs/own.md), as the names below that say so.
    config.dataset = "digits"
    config.data_dir = ""  # holds the set; empty: looked for where systems put it, then in the cache
    config.download = True  # fetch, checked by sha256, what is found nowhere
    # A data set of one's own that gives its examples by number is read into memory first; or, where this is
    # True, batch by batch in every epoch anew, ahead of the steps.
    config.stream = False
    config.read_workers = 0  # processes that read it, for training; 0: this one
    config.validation_examples = 0  # held out of the training set, the same ones in every run
    config.crop_padding = 0  # training images are shifted by up to so many pixels
    config.flip = False  # ... and mirrored half the time
    # ... and lose a square of so many pixels a side, around any pixel: it may lie partly outside.
    config.cutout = 0
    # Leading axes of targets that count examples. 2: targets are (examples, time), and every token is an
    # example to estimators, the loss and the metric; the network keeps (examples, time, features).
    config.batch_axes = 1

    # What the network is trained on: softmax_cross_entropy (integer classes, one an example or a token),
    # sigmoid_cross_entropy (labels that each hold or do not) or squared_error; or one's own.
    config.loss = "softmax_cross_entropy"
    # What it is judged by, and the best network chosen: accuracy, multilabel_accuracy, mean_absolute_error
    # or mean_squared_error; or one's own.
    config.metric = "accuracy"

    # The network. Its layers are counted from 0; the last one is the output layer.
    config.model = ConfigDict()
    config.model.name = "mlp"  # mlp, cnn, vgg, resnet, resnet_large, vit, gpt, rnn or one's own
    config.model.norm = (
        "batch"  # none, batch or layer; vit and gpt have layer norms, rnn none, whatever this says
    )
    config.model.backward_rule = "exact"  # or feedback_alignment, sign_symmetric: in Dense and Conv layers
    # float32 or bfloat16: in which modules compute, and heads of local losses on what these hand on;
    # parameters and losses stay float32.
    config.model.dtype = "float32"
    config.model.mlp = ConfigDict({"depth": 6, "width": 256, "dropout": 0.0})
    config.model.cnn = ConfigDict({"features": (32, 64, 128), "kernel_size": 3})
    # layers: channels, and pool where the image is halved; width multiplies channels. The default: VGG8B of
    # Nøkland & Eidnes 2019.
    vgg_layers = "128,256,pool,256,512,pool,512,pool,512,pool"
    config.model.vgg = ConfigDict({"layers": vgg_layers, "width": 1.0, "dense": (1024,), "dropout": 0.0})
    # For images of 32x32 or so, 6 n + 2 layers deep (20, 32, 44, 56, 110); and for those of 224x224 or so,
    # 18, 34, 50, 101 or 152; with small_images the same on 32x32 or so, by a 3x3 stem without pooling: the
    # ResNet-18 of papers on CIFAR. width: channels of the first stage. To boundaries a block is one layer.
    config.model.resnet = ConfigDict({"depth": 20, "width": 16})
    config.model.resnet_large = ConfigDict({"depth": 18, "width": 64, "small_images": False})
    config.model.vit = ConfigDict(
        {"depth": 6, "width": 192, "heads": 3, "patch_size": 4, "class_token": True, "dropout": 0.0}
    )
    # For sequences of tokens (examples, time), as many as there are classes; context: the longest of them.
    config.model.gpt = ConfigDict({"depth": 6, "width": 192, "heads": 3, "context": 256, "dropout": 0.0})
    # For sequences of vectors, or of tokens if it has a vocabulary. cell: simple, gru or lstm; last_step:
    # one output for the whole sequence.
    config.model.rnn = ConfigDict(
        {
            "depth": 2,
            "width": 256,
            "cell": "lstm",
            "vocabulary": 0,
            "last_step": False,
            "dropout": 0.0,
        }
    )
    config.model.options = ConfigDict()  # of one's own: any fields, which its function asks for

    # Where to cut it: all, none, after chosen layers, like 0,2,5, or into so many modules, like even:16, of
    # equally many layers; where these cannot be shared out, the highest modules have one more. The last
    # module counts, as K does in papers: ResNet-32 and ResNet-110 go up to K = 16 and 55 there, where the
    # last block has the output layer in its module.
    config.boundaries = "all"

    # What stands in for the gradient at a boundary: one of the files in decoupled/estimators, which
    # describe them, or one's own. backprop (the true gradient) is the baseline. A section below, called
    # like the estimator, holds its options.
    config.estimator = ConfigDict()
    config.estimator.name = "loss_shaped"
    config.estimator.conditioned = (
        True  # whether its estimates see the labels beside h, where it has that choice
    )
    # norm: none, batch or layer, before the ReLU of hidden layers
    config.estimator.mlp = ConfigDict({"hidden": (256,), "norm": "none"})
    config.estimator.convolutional = ConfigDict({"features": (), "kernel_size": 3, "norm": "none"})
    config.estimator.recursive_least_squares = ConfigDict({"decay": 0.97, "ridge": 1e-3, "solve_every": 1})
    config.estimator.bp_lambda = ConfigDict({"estimator": "loss_shaped", "lam": 0.5})
    config.estimator.sg_prop = ConfigDict({"estimator": "linear", "scale": 1.0})
    # depth: layers like those above, below a last one, at the lowest boundary; min_depth: at the highest
    config.estimator.auxiliary_network = ConfigDict({"depth": 2, "min_depth": 1})
    # the same, of the network whose gradient it is
    config.estimator.surrogate = ConfigDict({"depth": 1, "min_depth": 1})
    # of a copy: renewed every so many steps; decay: 0, or what is left of it then, in a running average
    config.estimator.borrowed_readout = ConfigDict({"every": 10, "decay": 0.0})
    config.estimator.borrowed_next = ConfigDict(
        {"estimator": "local_loss", "next_modules": 1, "every": 10, "decay": 0.0}
    )
    config.estimator.local_loss = ConfigDict(
        {"hidden": (64,), "linear": True, "filters": (16,), "kernel_size": 5}
    )
    config.estimator.mean_teacher = ConfigDict({"hidden": (512,), "decay": 0.99})
    # width: of what is compared of vectors; of maps it is one deviation a channel
    config.estimator.similarity = ConfigDict({"weight": 0.99, "width": 128})
    config.estimator.noise = ConfigDict({"scale": 1.0})
    config.estimator.options = ConfigDict()  # of one's own

    # Each module has its own state of the optimizer, and each estimator of the other. Rates and decays are
    # those of PyTorch and optax.
    config.optimizer = ConfigDict()
    # adamw, adam, sgd, lion or muon: that is for matrices, which it moves by 0.2 of the rate (root mean
    # square, whatever their shape), with Adam for all else.
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3  # the highest, where a schedule changes it
    # constant; cosine: down to final_fraction of it; step: times step_factor at each of step_boundaries;
    # one_cycle: up from 1/25 of it in half a cosine wave, then as cosine. reduce_on_plateau: times
    # step_factor, down to final_fraction of it, each time that the loss (of estimators, their own) has not
    # fallen for so long; not in pipelines.
    config.optimizer.schedule = "cosine"
    # Of the run, as are the boundaries. The rate rises so long, in a straight line from 0 (in one_cycle's
    # wave for 0.3 of the run, if this is 0).
    config.optimizer.warmup_fraction = 0.0
    config.optimizer.step_boundaries = (0.5, 0.75)
    config.optimizer.step_factor = 0.1
    config.optimizer.final_fraction = 0.0
    config.optimizer.plateau_steps = 100  # over which the mean of the loss is taken
    config.optimizer.plateau_patience = 10  # so many means without a new lowest
    config.optimizer.momentum = 0.0  # of sgd
    config.optimizer.nesterov = False  # ... as Nesterov has it
    # Each update takes learning_rate * weight_decay of a parameter away; with sgd it is a part of the
    # gradient (L2), so that momentum gathers it.
    config.optimizer.weight_decay = 0.0
    config.optimizer.decay_biases_and_norms = True  # False: decay for what has two dimensions or more alone
    config.optimizer.clip_norm = 0.0  # longest gradient of one module; 0 for any length
    config.estimator_optimizer = ConfigDict()
    config.estimator_optimizer.name = "adam"
    config.estimator_optimizer.learning_rate = 1e-3
    config.estimator_optimizer.schedule = "cosine"
    config.estimator_optimizer.warmup_fraction = 0.0
    config.estimator_optimizer.step_boundaries = (0.5, 0.75)
    config.estimator_optimizer.step_factor = 0.1
    config.estimator_optimizer.final_fraction = 0.0
    config.estimator_optimizer.plateau_steps = 100
    config.estimator_optimizer.plateau_patience = 10
    config.estimator_optimizer.momentum = 0.0
    config.estimator_optimizer.nesterov = False
    config.estimator_optimizer.clip_norm = 0.0
    # Evaluate, and predict with, an exponential moving average of the modules' parameters, which keeps so
    # much of itself in each update (0.999, say), and batch statistics as they are; 0: no average.
    config.average_decay = 0.0
    # So much of each label is spread over all classes alike: in the loss that is trained and told, and in
    # those of local heads.
    config.label_smoothing = 0.0
    # Leave the parameters of a module (or estimator) as they are in a step whose gradient is infinite or
    # NaN, and count these steps, where the run otherwise stops. Batch statistics change in every step.
    config.skip_not_finite = False
    config.update_probability = 1.0  # of each module in each step (J16, section 3.3)

    # How devices share the work: none (one device), or each batch split over several, by the compiler
    # (mesh) or with the update run on each device's rows (shard_map, pmap). Results are equal to rounding,
    # but for what the last two draw or compare on each device: dropout, and the estimators noise and
    # similarity.
    config.parallel = ConfigDict()
    config.parallel.mode = "none"
    # pipeline: the network in stages, on devices of their own, all at work at once, each on its own batch.
    # The devices are split among the stages. (JAX_NUM_CPU_DEVICES=2 makes two devices of a CPU.)
    config.parallel.stages = 2
    config.parallel.devices = 0  # how many share a batch, in all processes together; 0 for all there are

    # How a step is compiled. fused: as one program. stacked: the same, with equal layers in one loop, so
    # that neither memory nor compile time grows with depth. dispatched: a program for each kind of layer.
    config.step = "fused"

    config.epochs = 10
    config.batch_size = 256  # of all devices together
    config.log_every = 50  # steps between lines of metrics
    config.alignment_every = 250  # steps between measurements of the cosine with the true gradient
    config.checkpoint_every = (
        1000  # steps between checkpoints, from which a run goes on; 0: at its end alone
    )
    config.show_test = False  # report the test accuracy after each epoch too, for display only
    return config
