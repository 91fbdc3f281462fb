# Where nvcc finds its parts, beside itself, when it is put together from Debian's package and pip's: see Dockerfile.
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES += "-I$(TOP)/include"
LIBRARIES =+ "-L$(TOP)/lib"
