"""Executes lowered graphs (`engine.lowered`) on an NVIDIA GPU, or for tests on the CPU, with torch.

    sites            a step with its weights on a device: what an implementation is bound to
    expressions      pointwise programs and activations
    layers           convolutions, matrix products, attention, LSTM: torch and cuDNN
    joined           layers in a row as one step
    shapes           pooling, norms, reductions, and everything that moves numbers
    implementations  the table: kind of step -> name -> implementation; tuners and kernels of our own add to it
    workspace        memory through which a kernel's blocks share sums
    ways             what a kernel of ours needs to be an implementation
    triton_steps     our own kernels as implementations, with triton_joined, triton_moves and recurrent; imported only
                     where Triton is wanted
    choices          what executes each step, as data
    executor         all steps bound: eager, as one CUDA graph, or as a module for torch.compile
    tuner            choices by time: trials of candidates in the order of their worth; precompile gives it kernels
                     compiled in other processes, which nursery starts
    form, artifact   a model's steps and weights as a file, and what a built program is besides
    buckets          a form's weights on a device, and its steps bound at one bucket
    device_arrays    one batch in flight whose arrays lie on the GPU and stay there
    contexts         one batch in flight: pinned buffers, a stream, a graph
    tuning           choices beside a form, found once
    runtime          the runtime `cuda`, as engines and the builder use it
    kernels/         our own kernels, in Triton and CUDA C++

This module imports neither torch nor anything else, so that naming the package costs nothing.
"""
