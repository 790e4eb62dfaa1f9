# Environment variables of a launch on Ascend, and what each does for the step that this plugin replaces; source it. What
# they do is from documentation, not tried, and figures for them are not measured: no Ascend hardware was at hand.

# Operators are launched from a queue of their own, so that the host's time for a launch is not the operator's. The plugin
# saves launches and waits; with 0 the saved launches weigh more, with ASCEND_LAUNCH_BLOCKING=1 every launch waits.
export TASK_QUEUE_ENABLE=2

# MB of device memory for each direction of each communicator that has no size of its own. With TP = 1 the plugin's counts
# travel on the expert-parallel group, which exists anyway (else on TPxEP, as Megatron's); `exchange_group: dedicated`
# makes one of 1 MB whatever this says.
export HCCL_BUFFSIZE=200

# Seconds that ranks wait for each other when a communicator is made, and in a collective. The plugin makes at most one
# communicator, and compares the ranks' layouts through the store before it, so that a mistake is a message and no timeout.
export HCCL_CONNECT_TIMEOUT=3600
export HCCL_EXEC_TIMEOUT=3600

# Streams that a device offers. The plugin uses the current one; `stream: side` takes one more.
export STREAMS_PER_DEVICE=32

# One queue for launches, so that collectives and kernels start in the order of the program; Megatron asks for it with TP.
export CUDA_DEVICE_MAX_CONNECTIONS=1

# Memory that grows in place. What the plugin keeps (a few KB a layer) is allocated once and does not fragment anything.
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True

# Threads bound to the cores near their device: the host's half of preprocess is what profits.
export CPU_AFFINITY_CONF=1
