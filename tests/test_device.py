"On a device that is not the CPU: the cases of device/cases.py, in a process of their own, as torch never forgets a device type"
import os, subprocess, sys
from pathlib import Path
import pytest, torch

CASES = Path(__file__).parent/'device'/'cases.py'

def run_cases(*args):
    r = subprocess.run([sys.executable, '-m', 'pytest', '-rs', str(CASES), *args], capture_output=True, text=True, env={**os.environ, 'COLUMNS':'140'})
    assert r.returncode==0, r.stdout[-6000:] + r.stderr[-2000:]
    if ' passed' not in r.stdout: pytest.skip(r.stdout[-300:])

def test_on_a_device_of_our_own(): run_cases('-m', 'not cuda')

@pytest.mark.cuda
def test_on_a_gpu():
    if not torch.cuda.is_available(): pytest.skip('no GPU')
    run_cases('-m', 'cuda')
