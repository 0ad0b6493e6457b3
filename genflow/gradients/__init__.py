"""What gradients through a sampler are for: inverting, auditing, fine-tuning.

    inversion    the condition:  what must a model be told, so that it makes this?
    audit        the noise:      what is the smallest change for which a classifier fails?
    finetune     the weights:    moved down a metric of the samples

Each is a `Task`, done one iteration at a time by `iterate`; `genflow.gradients.jobs.run` does it
in a folder that a killed run can be gone on with.
"""

__all__ = [
    "Audit",
    "Classified",
    "Descent",
    "Drawn",
    "FineTuning",
    "Gram",
    "Inversion",
    "Loss",
    "Pixel",
    "Task",
    "beginning",
    "classifier_of",
    "fit_classifier",
    "iterate",
    "lay",
    "merge",
]

from genflow.gradients.audit import Audit
from genflow.gradients.classifiers import classifier_of, fit_classifier
from genflow.gradients.descent import Descent
from genflow.gradients.drawing import Drawn
from genflow.gradients.finetune import FineTuning
from genflow.gradients.inversion import Inversion, beginning
from genflow.gradients.loop import Task, iterate
from genflow.gradients.lora import lay, merge
from genflow.gradients.losses import Classified, Gram, Loss, Pixel
