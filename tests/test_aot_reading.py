"""The reading of machine code, on a listing whose clocks are counted by hand."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "scripts" / "sass.py"
SPEC = importlib.util.spec_from_file_location("sass", PATH)
assert SPEC and SPEC.loader
sass = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sass)

LISTING = """
//--------------------- .text.other ----
.text.other:
        /*0000*/                   FADD R1, R2, R3 ;
        /*0010*/                   EXIT ;
//--------------------- .text.isojax_store ----
.text.isojax_store:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   FMUL R1, R2, R3 ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, desc[UR14][R16.64] ;
        /*0030*/              @!P0 FFMA R1, R2, R3, R4 ;
        /*0040*/                   IMAD.MOV.U32 R1, RZ, RZ, R4 ;
        /*0050*/                   FSETP.GT.AND P1, PT, R1, R2, PT ;
        /*0060*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;
        /*0070*/                   BRA.DIV UR4, `(.L_x_2) ;
.L_x_3:
        /*0080*/                   LDS.128 R4, [R1] ;
        /*0090*/                   LDSM.16.M88.2 R4, [R1] ;
        /*00a0*/                   MUFU.SQRT R1, R2 ;
        /*00b0*/              @P2  STG.E.U16 desc[UR14][R6.64], R1 ;
        /*00c0*/              @P0  BRA `(.L_x_0) ;
        /*00d0*/                   EXIT ;
.L_x_2:
        /*00e0*/                   BRA `(.L_x_3) ;
.L_x_1:
        /*00f0*/                   BRA `(.L_x_1);
"""
PTX = ".reqntid 128, 1, 1\n st.global.b16 [ %rd1 ], { %rs1 };\n"


def test_the_loop_is_found_and_its_clocks_counted():
    code = sass.listing(LISTING, "isojax_store")
    assert [i.name for i in code][-1] == "EXIT"
    body, repeated = sass.inner(code)
    assert repeated and len(body) == 11
    want = {"issue": 11 / 4, "alu": 0.5, "fma": 0.5, "xu": 2, "smem": 1 + 4 + 2, "tensor": 0}
    assert sass.clocks(body, sass.RATES["sm90"]) == want


def test_bounds_are_relative_to_memory():
    code = sass.listing(LISTING, "isojax_store")
    rates = sass.Rates(fma=128, tensor=1024, groups=0, memory=2.0)
    # a tile is of 4 warps; in `more` ptxas has unrolled 4 of 8 tiles, by the stores
    found = sass.speed(PTX, code, sass.Work(numbers=8 * 512, moved=8 * 28, tiles=8), rates)
    assert found["smem"] == found["roof"] == 50 and found["bound"] == "smem"
    assert found["issue"] == 127 and found["per_element"] == 2.8
    more = [*code[:-1], *[i for i in code if i.name.startswith("STG")] * 3, code[-1]]
    assert sass.speed(PTX, more, sass.Work(8 * 512, 8 * 28, 8), rates)["smem"] == 200


def test_nested_loops_have_no_bounds():
    code = sass.listing(LISTING, "isojax_store")
    nested = [i._replace(target=0x30) if i.address == 0x50 else i for i in code]
    assert sass.inner(nested) is None
    assert sass.speed(PTX, nested, sass.Work(1, 1, 1), sass.RATES["sm80"]) == {}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("HMMA.16816.F32.BF16", 2048),
        ("HMMA.1688.F32.TF32", 2048),
        ("HGMMA.64x64x16.F32.BF16", 16384),
    ],
)
def test_products_of_tensor_cores(name, number):
    assert sass.products(name) == number
