"""Distillation: its formula, its teacher, and what it may be put around."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tasks.models.weights import restore
from tasks.moment import Moment
from tasks.objectives.distilled import Distilled
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.free import Free
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.seeds import generator
from tests.tasks.training_toys import Blobs, Finished, Tiny, Watch, half_mask, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    examples = Blobs().load("train")
    return examples.images.float() / 255, examples.labels


def nets() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A student and a teacher."""
    found = []
    for seed in (0, 1):
        network = Tiny().build(Blobs().signature())
        restore(network, trained(toy(init_seed=seed)).read("weights.safetensors"))
        found.append(network)
    return found[0].train(), found[1].eval()


def test_the_loss_is_the_weighted_mean_of_labels_and_teacher():
    student, teacher = nets()
    images, labels = batch()
    logits, taught = student(images), teacher(images)
    soft, own = (taught / 4).softmax(1), (logits / 4).softmax(1)
    divergence = (soft * (soft / own).log()).sum(1).mean()
    expected = 0.3 * F.cross_entropy(logits, labels) + 0.7 * 16 * divergence
    found = Distilled(alpha=0.7, temperature=4).loss(student, images, labels, Moment(generator("x"), teacher=teacher))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_under_attack_the_teacher_answers_the_images_as_they_are():
    student, teacher = nets()
    images, labels = batch()
    inside = PGD(epsilon=0.1, steps=2)
    perturbed = inside.perturb(student, images, labels, 0.1, Moment(generator("x")))
    logits, taught = student(perturbed), teacher(images)
    expected = F.kl_div(logits.log_softmax(1), taught.softmax(1), reduction="batchmean")
    found = Distilled(objective=inside, alpha=1).loss(student, images, labels, Moment(generator("x"), teacher=teacher))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert Distilled(objective=inside).passes() == 3


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it():
    student, _ = nets()
    images, labels = batch()
    student.eval()
    found = Distilled(alpha=1).loss(student, images, labels, Moment(generator("x"), teacher=student))
    assert found.item() == pytest.approx(0, abs=1e-6)


def test_a_sparse_student_learns_what_its_teacher_says_even_where_the_labels_say_otherwise():
    teacher = trained(toy(epochs=1, init_seed=3))  # it knows little
    answers, images = Tiny().build(Blobs().signature()), batch()[0]
    restore(answers, teacher.read("weights.safetensors"))
    taught = answers.eval()(images).log_softmax(1)
    distances = []
    for objective in (Standard(), Distilled(alpha=1)):
        inputs = {"teacher": teacher} if objective.taught else {}
        step = trained(toy(objective=objective, init_seed=5, epochs=10), mask=half_mask(teacher), **inputs)
        student = Tiny().build(Blobs().signature())
        restore(student, step.read("weights.safetensors"))
        own = student.eval()(images).log_softmax(1)
        distances.append(F.kl_div(own, taught, log_target=True, reduction="batchmean").item())
    assert distances[1] < 0.2 * distances[0]


@pytest.mark.parametrize("inside", [Free(epsilon=0.1), Distilled()], ids=["free", "distilled"])
def test_it_is_put_only_around_what_attacks_before_the_loss(inside: Standard):
    with pytest.raises(ValueError, match=r"distilled is put around `standard`, or around an objective that attacks"):
        Distilled(objective=inside)


def test_it_has_the_threat_of_the_objective_inside():
    assert Distilled(objective=FGSMRS(epsilon=0.1)).threat == ("linf", 0.1)
    assert Distilled(objective=FGSMRS(epsilon=0.1)).against(0.2).threat == ("linf", 0.2)
    assert Distilled().threat is None


def test_a_training_without_its_teacher_and_one_with_a_teacher_too_many_are_told_in_one_line():
    with pytest.raises(ValueError, match="objective distilled needs a teacher: input 'teacher'"):
        toy(objective=Distilled()).run(Watch())
    with pytest.raises(ValueError, match="objective standard learns from no teacher: input 'teacher'"):
        toy().run(Watch(), teacher=trained(toy()))


def test_the_teacher_stays_as_it_is():
    teacher = trained(toy(epochs=1))
    before = dict(teacher.files)
    step: Finished = trained(toy(objective=Distilled(objective=PGD(epsilon=0.1, steps=1))), teacher=teacher)
    assert teacher.files == before
    assert step.metrics["sample_steps"] == 2 * trained(toy()).metrics["sample_steps"]
