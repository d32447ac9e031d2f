"""Settings that cannot work are refused in one line that names the key and what is allowed; nothing is written."""

from __future__ import annotations

import pytest

from tests.cli.terminal import SFL, SMALL, Terminal

FIT = ("fit", SFL)
SGD = ("--model.client_optimizer=SGD",)
METHODS = ("SFL", "FedAvg", "MiniBatchSFL")


UNKNOWN = [
    (["--foo=3"], ["'foo'", "known:", "model"]),
    (["--trainer.max_epoch=3"], ["'trainer.max_epoch'", "did you mean trainer.max_epochs?"]),
    (["--trainer.max_epoch", "3"], ["'trainer.max_epoch'", "did you mean trainer.max_epochs?"]),
    (["--data.numclients=3"], ["'data.numclients'", "did you mean data.num_clients?", "val_fraction"]),
    (["--model.local_epoch=3"], ["'model.local_epoch'", "did you mean model.local_epochs?"]),
    (["--model.backbone.num_clases=3"], ["'model.backbone.num_clases'", "model.backbone.num_classes", "dropout"]),
    (["--data.partition.alhpa=3"], ["'data.partition.alhpa'", "did you mean data.partition.alpha?", "min_size"]),
    (
        [*SGD, "--model.client_optimizer.learning_rate=1"],
        ["model.client_optimizer.learning_rate", "known: lr, momentum"],
    ),
    (["--checkpoints.kep=1"], ["'checkpoints.kep'", "did you mean checkpoints.keep?"]),
    (["extra"], ["'extra'", "--name value"]),
    (["--model=SLF"], ["model: no method called 'SLF'", "did you mean SFL?", *METHODS, "import path"]),
    (["--model.backbone=DigitCNN"], ["model.backbone: no backbone", "did you mean DigitsCNN?", "ResNet18"]),
    (["--data.source=Digit"], ["data.source: no source", "did you mean Digits?", "Synthetic"]),
    (["--data.partition=Dirichle"], ["data.partition: no partition", "did you mean Dirichlet?", "IID"]),
    (
        ["--model.selection=Unifrom"],
        [
            "model.selection: no selection",
            "did you mean Uniform?",
            "FixedSchedule",
            "FedCBS",
            "LabelAware",
            "Oort",
            "PowerOfChoice",
        ],
    ),
    (["--model.client_optimizer=SDG"], ["model.client_optimizer: no optimizer", "did you mean SGD?", "AdamW"]),
    (["--model.client_scheduler=StepRL"], ["model.client_scheduler: no scheduler", "did you mean StepLR?"]),
    (["--trainer.callbacks=EarlyStoping"], ["trainer.callbacks: no callback", "did you mean EarlyStopping?"]),
    (["--trainer.callbacks+=EarlyStoping"], ["trainer.callbacks: no callback", "did you mean EarlyStopping?"]),
]
WRONG_TYPE = [
    (["--model.local_epochs=many"], ["model.local_epochs='many' is not allowed: an integer"]),
    (["--model.local_epochs=1.5"], ["model.local_epochs=1.5 is not allowed: an integer"]),
    (["--model.local_epochs=null"], ["model.local_epochs=None is not allowed: an integer"]),
    (["--model.backbone.num_classes=null"], ["model.backbone.num_classes=None is not allowed: an integer"]),
    (["--data.partition.alpha=null"], ["data.partition.alpha=None is not allowed: a finite number"]),
    (["--data.eval_metrics=f1"], ["data.eval_metrics='f1' is not allowed: a list in brackets"]),
    (["--data.eval_metrics=[auc]"], ["data.eval_metrics='auc' is not allowed: f1 or mcc"]),
    (["--data.num_clients=x"], ["data.num_clients='x' is not allowed: an integer or null"]),
    (["--data.val_fraction=null"], ["data.val_fraction=None is not allowed: a finite number"]),
    (["--model.weighting=most"], ["model.weighting='most' is not allowed: samples, rows or uniform"]),
    (["--model.backbone.norm=layer"], ["model.backbone.norm='layer' is not allowed: none, batch or group"]),
    ([*SGD, "--model.client_optimizer.lr=fast"], ["model.client_optimizer.lr='fast' is not allowed: a finite number"]),
    (["--seed_everything=true"], ["seed_everything=True is not allowed: an integer"]),
    (["--seed_everything=1.5"], ["seed_everything=1.5 is not allowed: an integer"]),
]
RANGES = [
    (["--model.local_epochs=0"], ["model.local_epochs=0 is not allowed: an integer >= 1"]),
    (["--model.participants=-3"], ["model.participants=-3 is not allowed: an integer >= 1"]),
    (["--model.client_clip=.inf"], ["model.client_clip=inf is not allowed: a finite number > 0"]),
    (["--model.backbone.num_classes=0"], ["model.backbone.num_classes=0 is not allowed", "at least 1"]),
    (["--model.backbone.dropout=.nan"], ["model.backbone.dropout=nan is not allowed", "below 1"]),
    (["--data.partition.alpha=0"], ["data.partition.alpha=0.0 is not allowed: a positive finite number"]),
    (["--data.val_fraction=1"], ["data.val_fraction=1.0 is not allowed: a share from 0 to below 1"]),
    (["--data.eval_metrics=[f1,f1]"], ["data.eval_metrics=['f1', 'f1'] is not allowed: a list of f1, mcc, each once"]),
    (["--data.num_clients=100000"], ["data.num_clients=100000 is not allowed", "rows to deal out"]),
    (["--traffic.every=-1"], ["traffic.every=-1 is not allowed: an integer >= 0"]),
    (["--checkpoints.keep=0"], ["checkpoints.keep=0 is not allowed: an integer >= 1"]),
    (["--threads=0"], ["threads=0 is not allowed: a number >0"]),
    (["--seed_everything=-1"], ["seed_everything=-1 is not allowed: an integer from 0"]),
    (["--seed_everything=99999999999"], ["seed_everything=99999999999 is not allowed: an integer from 0"]),
    (["--model.seed=3"], ["model.seed", "give seed_everything"]),
    (["--data.seed=3"], ["data.seed", "give seed_everything"]),
]
OPTIMIZERS = [
    ([*SGD, "--model.client_optimizer.lr=-1"], ["model.client_optimizer is not allowed", "learning rate: -1.0"]),
    ([*SGD, "--model.client_optimizer.lr=.nan"], ["model.client_optimizer.lr=nan is not allowed: a finite number"]),
    ([*SGD, "--model.client_optimizer.lr=.inf"], ["model.client_optimizer.lr=inf is not allowed: a finite number"]),
    ([*SGD, "--model.client_optimizer.momentum=-1"], ["model.client_optimizer is not allowed", "momentum value: -1.0"]),
    ([*SGD, "--model.client_optimizer.momentum=1.5"], ["model.client_optimizer.momentum=1.5", "from 0 to below 1"]),
    (["--model.server_optimizer=null"], ["model.server_optimizer=None is not allowed: an optimizer"]),
    (["--model.client_optimizer=LBFGS"], ["model.client_optimizer='LBFGS' is not allowed", "without a closure"]),
    (["--model.client_scheduler=StepLR"], ["model.client_scheduler.step_size is missing"]),
    (
        ["--model.client_scheduler=StepLR", "--model.client_scheduler.step_size=0"],
        ["model.client_scheduler is not allowed: it fails after round 0"],
    ),
    (
        ["--model.server_scheduler=ExponentialLR", "--model.server_scheduler.gamma=-1"],
        ["model.server_scheduler='ExponentialLR' is not allowed", "learning rate after round 0 would be -0.1"],
    ),
    (
        [
            "--model.client_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
            "--model.client_scheduler.mode=max",
        ],
        ["model.client_scheduler='ReduceLROnPlateau' is not allowed", "without a metric"],
    ),
]
FAMILY = [
    (["--model.aggregator=Medain"], ["model.aggregator: no aggregator", "did you mean Median?", "WeightedAverage"]),
    (
        ["--model.aggregator.power=2"],
        ["model.aggregator.power is an option of a class", "give model.aggregator before it"],
    ),
    (["--model.aggregator=Krum", "--model.aggregator.num_byzantine=-1"], ["aggregator.num_byzantine=-1", ">= 0"]),
    (["--model.aggregator=Krum", "--model.aggregator.num_byzantine=5"], ["aggregator='Krum'", "13 clients", "not 10"]),
    (["--model.aggregator=Krum", "--model.aggregator.byzantine=1"], ["did you mean model.aggregator.num_byzantine?"]),
    (["--model.aggregator=TrimmedMean", "--model.participants=2"], ["aggregator='TrimmedMean'", "needs 3", "not 2"]),
    (
        ["--model.aggregator=CosineWeighted", "--model.aggregator.reference=last"],
        ["reference='last'", "mean, others or previous"],
    ),
    (
        ["--model=FedSGD", "--model.aggregator=CosineWeighted", "--model.aggregator.reference=previous"],
        ["aggregator='CosineWeighted' is not allowed: only without reference=previous in FedSGD, as clients send"],
    ),
    (["--model.aggregator=NormClipping", "--model.aggregator.threshold=.nan"], ["aggregator.threshold=nan", "> 0"]),
    (["--model=SplitLearning", "--model.aggregator=Median"], ["aggregator='Median'", "none in SplitLearning"]),
    (["--model.merge_optimizer=FedAdma"], ["model.merge_optimizer: no optimizer", "did you mean FedAdam?", "FedYogi"]),
    (["--model.merge_optimizer=FedYogi", "--model.merge_optimizer.tau=0"], ["model.merge_optimizer", "tau=0.0", "> 0"]),
    (["--model.merge_optimizer=SGD", "--model.merge_optimizer.lr=.nan"], ["model.merge_optimizer.lr=nan", "finite"]),
    (["--model.selection=Oort", "--model.selection.clip=2"], ["selection.clip=2.0 is not allowed", "from 0 to 1"]),
    (["--model.selection=Oort", "--model.selection.min_rows=0"], ["selection.min_rows=0 is not allowed", ">= 1"]),
    (["--model.selection=Oort", "--model.selection.min_rows=9999"], ["selection.min_rows=9999", "at most", "asks"]),
    (["--model.selection=Oort", "--model.selection.blacklist_after=-1"], ["selection.blacklist_after=-1", "or null"]),
    (["--model.selection=Oort", "--model.selection.epsilon=1"], ["no setting called", "least_exploration"]),
    (["--model.selection=PowerOfChoice", "--model.selection.candidates=9"], ["candidates=9", ">= participants=10"]),
    (["--model.selection=FedCBS", "--model.selection.floor=0"], ["selection.floor=0.0 is not allowed", "> 0"]),
    (["--model.selection=FedCBS", "--model.selection.exploration=.inf"], ["selection.exploration=inf", "finite"]),
    (["--model=Centralized", "--model.selection=Oort"], ["selection='Oort'", "none in Centralized"]),
    (["--model.cell.compute_flops=[0,1]"], ["cell.compute_flops=[0.0, 1.0] is not allowed", "two numbers > 0"]),
    (["--model.attendance.availability=0"], ["attendance.availability=0.0 is not allowed: above 0, at most 1"]),
    (
        ["--model.attendance.availability=often"],
        ["attendance.availability='often'", "a finite number or a list of numbers in brackets"],
    ),
    (["--model.attendance.availability=[1,2]"], ["attendance.availability[1]=2.0 is not allowed: from 0 to 1"]),
    (["--model.attendance.availability=[1,0.5]"], ["attendance.availability='2 numbers'", "one for each client"]),
    (["--model.attendance.overcommit=.inf"], ["attendance.overcommit=inf is not allowed: a finite number >= 1"]),
    (["--model.attendance.quorum=11"], ["attendance.quorum=11 is not allowed: at most participants=10"]),
    (["--model.attendance.trace=no.json"], ["attendance.trace='no.json' is not allowed: an existing JSON file"]),
    (["--model.attendance.absence=1"], ["no setting called", "'attendance.absence'"]),
    (["--model=SFLV2", "--model.attendance.deadline_s=1"], ["attendance.deadline_s=1.0", "one client steps at a time"]),
    (["--model=GAS", "--model.attendance.availability=0.5"], ["attendance.availability=0.5", "its own clock"]),
    (["--model=FedBuff", "--model.staleness=Hnige"], ["no staleness function", "did you mean Hinge?", "Polynomial"]),
    (["--model=FedBuff", "--model.staleness=Hinge", "--model.staleness.slope=-1"], ["staleness.slope=-1.0", ">= 0"]),
    (["--model=FedBuff", "--model.attendance.quorum=2"], ["attendance.quorum=2", "1 in FedBuff", "its own clock"]),
    (["--model=FedBuff", "--model.max_staleness=-1"], ["max_staleness=-1 is not allowed: an integer >= 0, or null"]),
    (["--model=FedBuff", "--model.max_staleness=1.5"], ["model.max_staleness=1.5"]),
    (["--model=CA2FL", "--model.calibration=sum"], ["model.calibration='sum'", "mean", "cached_sum"]),
    (["--model=CA2FL", "--model.weighting=rows"], ["model.weighting='rows'", "uniform", "samples"]),
    (["--model=CA2FL", "--model.aggregator=Median"], ["none in CA2FL, as the server keeps updates"]),
    (["--model=CA2FL", "--model.privacy=GradientMasking"], ["null in CA2FL, as the server keeps updates"]),
    (
        ["--model=FedBuff", "--model.privacy=GradientMasking", "--model.max_staleness=2"],
        ["max_staleness=2 is not allowed: null with privacy GradientMasking: updates are hidden as they are merged"],
    ),
    (["--model=FedAsync", "--model.mixing=0"], ["mixing=0.0 is not allowed: above 0, at most 1"]),
    (["--model=FedAsync", "--model.aggregator=Median"], ["aggregator='Median'", "none in FedAsync", "one by one"]),
    (["--model=PerFedAvg", "--model.adapt_lr=-1"], ["adapt_lr=-1.0 is not allowed", "a finite number >= 0"]),
    (["--model=PerFedAvg", "--model.delta=0.1"], ["delta=0.1 is not allowed: null in variant fo"]),
    (["--model=PerFedAvg", "--model.variant=hf", "--model.delta=0"], ["delta=0.0 is not allowed", "> 0, or null"]),
    (["--model=PerFedAvg", "--model.variant=maml"], ["variant='maml'", "fo"]),
    (["--model=PerFedAvg", "--model.batch_size=1"], ["batch_size=1 is not allowed", ">= 2", "cut in two"]),
    (["--model=Reptile", "--model.rate=1.5"], ["rate=1.5 is not allowed", "> 0 and <= 1"]),
    (["--model=Reptile", "--model.anneal_rounds=0"], ["anneal_rounds=0 is not allowed: an integer >= 1, or null"]),
    (["--model=Reptile", "--model.merge_optimizer=SGD"], ["merge_optimizer", "null in Reptile", "`rate`"]),
    (["--client_metrics.every=1", "--client_metrics.adapt_steps=1"], ["client_metrics.adapt_lr=None", "finite number"]),
    (["--client_metrics.every=1", "--client_metrics.adapt_lr=0.1"], ["client_metrics.adapt_lr=0.1", "else null"]),
    (["--client_metrics.adapt_steps=-1"], ["client_metrics.adapt_steps=-1 is not allowed", ">= 0"]),
    (["--model=IFCA", "--model.clusters=0"], ["clusters=0 is not allowed: an integer >= 1"]),
    (["--model=IFCA", "--model.restart=-1"], ["restart=-1 is not allowed: an integer >= 0"]),
    (["--model=IFCA", "--model.aggregator=Median"], ["aggregator='Median'", "none in IFCA", "single client"]),
    (["--model=CFL", "--model.eps1=-1"], ["eps1=-1.0 is not allowed: a finite number >= 0"]),
    (["--model=CFL", "--model.eps1=2"], ["eps2=1.6 is not allowed", ">= eps1, which is 2, or null"]),
    (["--model=CFL", "--model.eps2=inf"], ["eps2=inf is not allowed", "a finite number"]),
    (["--model=CFL", "--model.aggregator=Median"], ["aggregator='Median'", "none in CFL", "single client"]),
    (["--model=CFL", "--model.dynamics.start=merged"], ["dynamics.start='merged'", "method in CFL"]),
    (["--model=ScaffoldSFL", "--model.client_optimizer=Adam"], ["model.client_optimizer='Adam'", "torch.optim.SGD"]),
    (
        ["--model=ScaffoldSFL", "--model.client_optimizer.momentum=0.9"],
        ["model.client_optimizer.momentum=0.9 is not allowed: 0", "steps have to be plain"],
    ),
    (["--model=ScaffoldSFL", "--model.client_optimizer.weight_decay=0.1"], ["client_optimizer.weight_decay=0.1", "0:"]),
    (["--model=ScaffoldSFL", "--model.privacy=GradientMasking"], ["null in ScaffoldSFL", "control variates"]),
    (["--model=ScaffoldSFL", "--model.bn_buffers=local"], ["bn_buffers='local'", "towards one network"]),
    (["--model=SFLProx", "--model.prox_mu=-1"], ["prox_mu=-1.0 is not allowed: a finite number >= 0"]),
    (["--model=SFLProx", "--model.prox_mu=.nan"], ["prox_mu=nan is not allowed: a finite number >= 0"]),
    (["--model.effort=Decya"], ["model.effort: no effort", "did you mean Decay?", "Plateau", "UpperConfidence"]),
    (["--model.effort=Decay", "--model.effort.epochs_factor=2"], ["effort.epochs_factor=2.0", "at most 1"]),
    (["--model.effort=Decay", "--model.effort.batch_factor=2"], ["effort.most_batch=None", "as batches grow"]),
    (["--model.effort=EpsilonGreedy", "--model.effort.arms=[1,1]"], ["effort.arms=[1, 1]", "different integers"]),
    (["--model.effort=Plateau", "--model.local_steps=3"], ["local_steps=3 is not allowed: null where `effort`"]),
    (["--model=MultiSFL", "--model.effort=Decay"], ["effort='Decay'", "null in MultiSFL, as replay"]),
    (["--model.privacy=LocalPD"], ["no privacy option called", "did you mean LocalDP?", "SecureAggregation"]),
    (["--model.privacy=CentralDP"], ["model.privacy.clip", "noise_multiplier", "missing"]),
    (["--model.privacy=LocalDP", "--model.privacy.clip=1"], ["privacy=LocalDP", "noise_multiplier or epsilon"]),
    (["--model.privacy=GradientMasking", "--model.privacy.keep=0"], ["privacy.keep=0.0", "above 0 and at most 1"]),
    (["--model.privacy=SecureAggregation", "--model.privacy.levels=1"], ["privacy.levels=1", "2 to 2**31"]),
    (["--model=MultiSFL", "--model.privacy=GradientMasking"], ["null in MultiSFL", "from client to client"]),
    (["--model.smashed_noise=-1"], ["smashed_noise=-1.0 is not allowed: a finite number >= 0"]),
    (["--model=FedAvg", "--model.smashed_noise=1"], ["smashed_noise=1.0 is not allowed: 0 in FedAvg"]),
    (["--model=FedSGD", "--model.merge_optimizer=SGD"], ["merge_optimizer", "null in FedSGD, as server_optimizer"]),
]
LATE = "it weighs updates that come late, and in {} none outlives its round or all count in full"
LATE += "; FedAsync, FedBuff and GAS have it"
STEPS = "it is about steps that clients take by themselves, and in FedSGD they take none; all methods but FedSGD and Ho"
FOREIGN = [  # options of other methods
    (["--model=SFL", "--model.staleness=Hinge"], ["model.staleness has no meaning for SFL: " + LATE.format("SFL")]),
    (["--model=CA2FL", "--model.staleness=Hinge"], ["has no meaning for CA2FL: " + LATE.format("CA2FL")]),
    (
        ["--model=SFL", "--model.max_staleness=2"],
        ["for SFL: it drops updates that come late, and in SFL none", "; CA2FL, FedAsync, FedBuff and GAS have it"],
    ),
    (["--model=FedBuff", "--model.calibration=mean"], ["for FedBuff; CA2FL has it: the paper's, where the mean"]),
    (["--model.staleness.slope=2"], ["model.staleness has no meaning for SFL: " + LATE.format("SFL")]),
    (["--model.staleness+=Hinge"], ["model.staleness has no meaning for SFL"]),
    (["--model=FedAvg", "--model.staleness=Hinge"], ["has no meaning for FedAvg: " + LATE.format("FedAvg")]),
    (
        ["--model=SFL", "--model.clusters=2"],
        ["model.clusters has no meaning for SFL: ", "clients choose", "; IFCA has"],
    ),
    (["--model=CFL", "--model.clusters=2"], ["in CFL they choose none; IFCA has it"]),
    (["--model=FedBuff", "--model.mixing=0.3"], ["the share of a client that is mixed in alone", "; FedAsync has it"]),
    (["--model=FedAsync", "--model.model_buffer=2"], ["FedAsync collects none; CA2FL, FedBuff and GAS have it"]),
    (
        ["--model=FedAvg", "--model.adapt_lr=0.1"],
        ["a step of adaptation in training", "client_metrics.adapt_lr", "PerFed"],
    ),
    (["--model=FedAvg", "--model.eps1=0.1"], ["a cluster of clients is divided, and FedAvg divides none; CFL has it"]),
    (["--model=SFL", "--model.prox_mu=1"], ["back to where the round began, and in SFL nothing", "; SFLProx has it"]),
    (["--model=SFL", "--model.rate=0.1"], ["which SFL has as the lr of merge_optimizer SGD", "; Reptile has it"]),
    (
        ["--model=FedAvg", "--model.server_optimizer=SGD"],
        ["a server half, and FedAvg has none", "methods but CA2FL, CFL, FedAs"],
    ),
    (["--model=FedSGD", "--model.batch_size=3"], [STEPS]),
    (
        ["--model.pull=1"],
        ["model.pull has no meaning for SFL; MultiSFL has it: how strongly the master draws each branch"],
    ),
    (
        ["--model.robust.rule=median"],
        ["model.robust has no meaning for SFL; HoloGrad has it: how the clients' scalars"],
    ),
    (["--model=HoloGrad", "--model.robust.foo=1"], ["no setting called", "'robust.foo'"]),
    (["--model.cluster=2"], ["no setting called 'model.cluster'"]),
]
NETWORKS = [
    (["--model.cut_layer=poool"], ["model.cut_layer='poool' is not allowed", "nearest valid cuts: pool"]),
    (["--model.cut_layer="], ["model.cut_layer='' is not allowed", "nearest valid cuts: conv1"]),
    (["--model.cut_layer=head"], ["model.cut_layer='head' is not allowed", "behind it", "nearest valid cuts"]),
    (["--model.cut_layer=null"], ["model.cut_layer is missing"]),
    (["--model.backbone.num_classes=5"], ["model.backbone='DigitsCNN' is not allowed", "2x5", "10 classes"]),
    (["--model.backbone.num_classes=12"], ["model.backbone='DigitsCNN' is not allowed", "2x12", "10 classes"]),
    (["--model.backbone=MLP", "--model.cut_layer=fc1"], ["model.backbone=MLP", "data.source=Digits", "2x1x8x8"]),
    (
        ["--model.backbone=CharLSTM", "--model.backbone.vocab_size=9", "--model.cut_layer=lstm1"],
        ["model.backbone=CharLSTM does not take data.source=Digits"],
    ),
    (["--model=SplitMethod"], ["model='SplitMethod' is not allowed", "has no serve()", *METHODS]),
    (["--data.partition=Partition"], ["data.partition='Partition' is not allowed: Partition is abstract", "Dirichlet"]),
    (["--model=torch.nn.Linear"], ["model='torch.nn.Linear' is not allowed: that is no method", *METHODS]),
]
TRAINER = [
    (["--trainer.precision=16-mixed"], ["trainer.precision='16-mixed' is not allowed: one of 32-true, 64-true"]),
    (["--trainer.precision=half"], ["trainer.precision='half' is not allowed: one of 32-true, 64-true"]),
    (["--trainer.max_epochs=0"], ["trainer.max_epochs=0 is not allowed: an integer >= 1"]),
    (["--trainer.max_epochs=null"], ["trainer.max_epochs=None is not allowed: an integer >= 1"]),
    (["--trainer.devices=2", "--placement.mode=local"], ["placement.mode='local' is not allowed: local is one"]),
    (["--trainer.devices=2", "--placement.mode=sharded"], ["placement.mode='sharded' is not", "use gathered or roles"]),
    (["--placement.mode=roles"], ["placement.mode='roles' is not allowed: roles with several processes"]),
    (["--trainer.strategy=ddp"], ["trainer.strategy='ddp' is not allowed: only auto"]),
    (["--trainer.accelerator=abacus"], ["accelerator='abacus'", "Available names are"]),
    (["--trainer.gradient_clip_val=1"], ["trainer.gradient_clip_val=1.0 is not allowed", "model.client_clip"]),
    (["--trainer.accumulate_grad_batches=2"], ["trainer.accumulate_grad_batches=2 is not allowed", "batch_size"]),
    (["--trainer.use_distributed_sampler=true"], ["trainer.use_distributed_sampler=True is not allowed: only false"]),
    (["--trainer.limit_train_batches=0"], ["trainer.limit_train_batches=0.0 is not allowed: only null"]),
    (["--trainer.limit_val_batches=2"], ["trainer.limit_val_batches=2.0 is not allowed: only null"]),
    (["--trainer.overfit_batches=1"], ["trainer.overfit_batches=1 is not allowed: only 0"]),
    (["--trainer.max_steps=5"], ["trainer.max_steps=5 is not allowed: only -1", "max_epochs"]),
    (["--trainer.val_check_interval=0.5"], ["trainer.val_check_interval=0.5 is not allowed: only null"]),
    (["--trainer.check_val_every_n_epoch=0"], ["trainer.check_val_every_n_epoch=0 is not allowed: an integer >= 1"]),
    (["--trainer.default_root_dir=null"], ["trainer.default_root_dir=None is not allowed: a folder"]),
    (["--trainer.max_time=soon"], ["Timer(duration='soon')", "DD:HH:MM:SS"]),
    (["--weights_only=false"], ["weights_only=False is not allowed: true or null"]),
]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [*UNKNOWN, *WRONG_TYPE, *RANGES, *OPTIMIZERS, *FAMILY, *FOREIGN, *NETWORKS, *TRAINER],
    ids=lambda case: case[0][:50],
)
def test_is_refused(arguments: list[str], words: list[str], terminal: Terminal) -> None:
    line = terminal.is_refused(*FIT, *arguments)
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.check_val_every_n_epoch=2"],
        ["--trainer.reload_dataloaders_every_n_epochs=1"],
        ["--trainer.num_sanity_val_steps=2"],
        ["--trainer.max_time=00:01:00:00"],
        ["--model.participants=1000000000000"],
        ["--model.batch_size=1000000000000"],
    ],
    ids=str,
)
def test_does_no_harm(arguments: list[str], terminal: Terminal) -> None:
    """Options that look like trouble and leave two rounds in the record."""
    code, _, err = terminal.types(*FIT, *SMALL, *arguments)
    assert (code, err) == (0, "")
    records = (terminal.folder / "runs" / "sfl" / "version_0" / "rounds.jsonl").read_text().splitlines()
    assert len(records) == 2
