from tests.harness import House
from tests import supply
import time

def test_x(house: House) -> None:
    t=time.time()
    trial = supply.trial(house)
    print("setup", time.time()-t)
    print(trial.allocate("01-0001"))
    print(trial.left_of("C1"))
    print(len(trial.site_kits()))
