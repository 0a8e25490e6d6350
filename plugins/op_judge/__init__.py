"""judge: likeness by CLIP and DINO, faces by InsightFace, verdicts by a vision-language model.

None of them comes with the package. `clip` and `dino` read weights that are here already; `vlm`
asks an endpoint that a person names in the environment; `face` is an extra with a licence of its
own. Nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.hookspecs import JudgeInfo, hookimpl


@hookimpl
def op_judges() -> Sequence[JudgeInfo]:
    """The four judges, by what they need."""
    return (
        JudgeInfo(
            name="clip",
            summary="CLIP ViT-B/32: how alike pictures are, how well one fits a text.",
            judge="op_judge.likeness:ClipJudge",
            licence="MIT",
            needs="weights: hf download openai/clip-vit-base-patch32 --revision refs/pr/15",
        ),
        JudgeInfo(
            name="dino",
            summary="DINO ViT-S/16: how alike pictures are, in more detail.",
            judge="op_judge.likeness:DinoJudge",
            licence="Apache-2.0",
            needs="weights: hf download facebook/dino-vits16",
        ),
        JudgeInfo(
            name="face",
            summary="InsightFace antelopev2: whether it is the same person's face.",
            judge="op_judge.face:FaceJudge",
            licence="MIT for the code; the weights are for non-commercial research only",
            needs="pip install 'omnipersona[face]', and weights in ~/.insightface",
        ),
        JudgeInfo(
            name="vlm",
            summary="A vision-language model behind an OpenAI-compatible endpoint.",
            judge="op_judge.vlm:VlmJudge",
            licence="that of the model you name",
            needs="OMNIPERSONA_VLM_URL and OMNIPERSONA_VLM_MODEL; OMNIPERSONA_VLM_KEY where asked",
        ),
    )
