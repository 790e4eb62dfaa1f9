// Stands in for CANN libraries that torch_npu names as needed but takes no function from.
extern "C" int ascend_sim_placeholder() { return 0; }
