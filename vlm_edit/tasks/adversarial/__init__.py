"""Adversarial images across modalities, and defence by a patch, judged by adaptive attacks."""
