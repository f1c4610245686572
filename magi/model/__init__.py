"""The model: tensors in, tensors out. It needs torch and einops alone.

It knows no files, ranks, devices, global random state, losses or loops. Shape letters: B batch, T latent frames,
S temporal slots fed to the transformer, N tokens a frame, K condition tokens a frame, P = K + N positions of a slot,
C channels of a token or latent, D width, M picked masked tokens, R noisings of each, H W height and width.
"""
