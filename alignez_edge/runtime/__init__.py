"""The ground floor: the only place that knows ctypes, llama.cpp symbols, callbacks, lifetimes."""
