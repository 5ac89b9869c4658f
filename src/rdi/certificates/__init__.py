"""Certificates: what holds for every image that an attacker may make, not only for those that were found."""

from rdi.certificates.bounds import BoundedNetwork, Bounds
from rdi.certificates.box import Box, ball
from rdi.certificates.policies import Certificates, certify, certify_each
from rdi.certificates.scores import score_bounds

__all__ = ["BoundedNetwork", "Bounds", "Box", "Certificates", "ball", "certify", "certify_each", "score_bounds"]
