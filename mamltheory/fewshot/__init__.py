"""Few-shot image classification: data, episodes, RFS pre-training (Section 6, Appendix E) and evaluation."""
