"""`mindspeed-moe demo`: a small GPT with MoE layers, trained with every implementation of preprocess in turn.

settings -> processes (parent) -> worker: data, model, training, timing (every rank) -> progress, report (parent).
"""
