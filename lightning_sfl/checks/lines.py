"""The lines of `train.py check`, in the order in which they are run: first what the others rest on."""

from __future__ import annotations

from lightning_sfl.checks import halves, own, relations, running
from lightning_sfl.checks.finding import Check

CHECKS = (
    Check("cut_eval", "outputs of the two halves and of the whole network, evaluation mode", halves.cut_in_eval_mode),
    Check("repeat", "two runs, built anew, other global generators", running.repeat),
    Check("cut_train", "outputs and moved buffers, training mode", halves.cut_in_train_mode),
    Check("gradient", "gradients through the cut and end-to-end autograd", halves.gradients_through_the_cut),
    Check("one_step", "the method's step with one client and the gradient of the uncut network", own.one_step),
    Check("one_client", "the method with one client and centralized training", relations.with_one_client),
    Check("sl_alone", "split learning with one client and centralized training", relations.split_learning_alone),
    Check("v1_fedavg", "SplitFed V1 and FedAvg of the whole network", relations.private_copies),
    Check("joint_step", "one step of MiniBatch-SFL and one centralized step", relations.joint_step),
    Check("fedsgd", "FedSGD and FedAvg with one full batch", relations.averaged_gradients),
    Check("denominator", "cut gradients times what losses are divided by, and each client's own", own.denominators),
    Check("counts", "steps and rows of every client, taken and planned", own.counts),
    Check("bytes", "bytes counted and sizes of the tensors moved", own.traffic),
    Check("resume", "a run stopped, saved, built anew and resumed, and one that went through", running.resume),
    Check("callbacks", "a run with all callbacks and loggers, and without any", running.watching),
    Check("engine", "clients of a step run in one stroke, and one after another", running.engine),
    Check("evaluation", "a run that is validated, and one that is not", running.judging),
    Check("finite", "training stops before a NaN reaches the weights", running.finite_guard),
    Check("relabelling", "clients under each other's numbers", running.relabelled),
    Check("weights", "aggregation weights, and a quarter of each", own.scaled_weights),
    Check("fingerprints", "partition and client schedule, made twice", running.fingerprints),
)
