"""Objects are told apart by what they are, not by what they say."""

from tfc.identity import identity
from tfc.ir.types import DType, TensorType


def test_as_id_tells_them_apart():
    equal = [TensorType((n % 3,), DType.F32) for n in range(1000)]
    assert len({identity(x) for x in equal}) == len({id(x) for x in equal}) == 1000
    assert [identity(x) for x in equal] == [identity(x) for x in equal]
