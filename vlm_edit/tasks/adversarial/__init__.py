"""Adversarial images across modalities, and defence by a patch, judged by adaptive attacks.

`docs/adversarial.md` teaches it.
"""

from vlm_edit.tasks.adversarial.apgd import apgd
from vlm_edit.tasks.adversarial.attacks import Attacked as Attacked
from vlm_edit.tasks.adversarial.attacks import Ball as Ball
from vlm_edit.tasks.adversarial.attacks import pgd
from vlm_edit.tasks.adversarial.black_box import square
from vlm_edit.tasks.adversarial.captions import Silence, Speech
from vlm_edit.tasks.adversarial.captions import Speaker as Speaker
from vlm_edit.tasks.adversarial.defence import (
    Bare,
    Defence,
    Strength,
    predict,
    suspicions,
    withstand,
)
from vlm_edit.tasks.adversarial.defence import Stood as Stood
from vlm_edit.tasks.adversarial.defence import fooling as fooling
from vlm_edit.tasks.adversarial.features import RESIDUAL as RESIDUAL
from vlm_edit.tasks.adversarial.features import Features, Others, Through, movement
from vlm_edit.tasks.adversarial.features import Movement as Movement
from vlm_edit.tasks.adversarial.features import nearest_text as nearest_text
from vlm_edit.tasks.adversarial.hardening import Hardening as Hardening
from vlm_edit.tasks.adversarial.hardening import harden_features, harden_gains
from vlm_edit.tasks.adversarial.host import ImageHost as ImageHost
from vlm_edit.tasks.adversarial.host import Pixels, ZeroShot, embed_texts
from vlm_edit.tasks.adversarial.losses import Away, Penalised, Targeted, Toward, Untargeted
from vlm_edit.tasks.adversarial.page import Case as Case
from vlm_edit.tasks.adversarial.page import drawn as drawn
from vlm_edit.tasks.adversarial.page import most_moved as most_moved
from vlm_edit.tasks.adversarial.page import to_image as to_image
from vlm_edit.tasks.adversarial.page import write_page as write_page

__all__ = [
    "Bare",
    "Away",
    "Defence",
    "Features",
    "Others",
    "Penalised",
    "Pixels",
    "Silence",
    "Speech",
    "Strength",
    "Targeted",
    "Through",
    "Toward",
    "Untargeted",
    "ZeroShot",
    "apgd",
    "embed_texts",
    "harden_features",
    "harden_gains",
    "movement",
    "pgd",
    "predict",
    "square",
    "suspicions",
    "withstand",
]
