"A device type of its own on the CPU, `testdev`, for what no test on the CPU can see; built once with the machine's compiler"
import shutil, sys, types
from pathlib import Path
import pytest, torch
from packaging.version import Version
from torch.utils import cpp_extension

def _module():
    "What torch asks of a device type, as `torch.cuda`"
    m,ops = types.ModuleType('torch.testdev'),torch.ops.test_device
    m.is_available,m.is_initialized,m._is_in_bad_fork = lambda: True,lambda: True,lambda: False
    m.device_count,m.current_device,m.set_device = lambda: 1,lambda: 0,lambda i: None
    m.get_rng_state,m.set_rng_state = lambda device=0: ops.get_state(),lambda state, device=0: ops.set_state(state)
    m.get_rng_state_all,m.set_rng_state_all = lambda: [ops.get_state()],lambda states: ops.set_state(states[0])
    m.manual_seed = m.manual_seed_all = ops.seed
    m.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.half]
    m.synchronize = lambda device=None: None
    return m

_device = None

def device():
    "`torch.device('testdev:0')`; skips the test where there is no compiler"
    global _device
    if _device is None:
        if Version(torch.__version__)<Version('2.14'): pytest.skip("device.cpp needs torch's headers of 2.14")
        if sys.platform=='win32' or not (shutil.which('c++') and cpp_extension.is_ninja_available()): pytest.skip('no compiler, or no ninja')
        torch.utils.rename_privateuse1_backend('testdev')
        cpp_extension.load('test_device', [str(Path(__file__).parent/'device.cpp')], extra_cflags=['-O1'], is_python_module=False)
        torch._register_device_module('testdev', _module())
        torch.utils.generate_methods_for_privateuse1_backend()
        torch.ops.test_device.start()
        _device = torch.device('testdev:0')
    return _device

class transfers:
    "A context that counts: `reads` from the device, `writes` to it, and `items`, those of the reads that gave a single number"
    def __enter__(self):
        torch.ops.test_device.reset()
        return self
    def __exit__(self, *args): self.reads,self.writes,self.items = torch.ops.test_device.counts()
