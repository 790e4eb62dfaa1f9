"""The simulated aclnn operators (C++), and the list of them."""
