"""The built-in trainer: it builds the transformer of a `ModelSpec` and really runs a plan with PyTorch.

    runner     one trial: what the study sees          worker      the processes of its ranks
    supported  which plans it runs                     twin        a big model's smaller proxy
    mesh       who speaks with whom                    collectives the exchanges, with their gradients
    model      the transformer's parts                 weights     each rank's part of every parameter
    tensor, context, experts, pipeline, data, recompute            the parallel pieces
    train      the measured loop                       verdict     why ranks failed
    fake       peak bytes without memory               communication   seconds of exchanges

Only modules below `worker` import torch; `runner`, `supported`, `twin`, `mesh` and `verdict` do not.
"""
