"""The template of a model card: Jinja, filled by [`hcal_hf.model_card.build_card`] with Markdown that is safe already."""

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ summary }}

## Use

With `hcal_hf` installed:

{{ usage }}
{% if usage_remote %}
Without it (this runs the code that lies in this repository; read it first, and pin a `revision`):

{{ usage_remote }}
{% endif %}
The pipeline gives for each text a list of labels, the top level first, each with `label`, `score` (its probability),
`depth` and `path`. {{ decoding }}

## Labels

{{ taxonomy }}

{{ levels }}

{{ tree }}

## Data

{{ data }}

## Training

{{ training }}

## Results
{% for result in results %}
### {{ result.title }}

{{ result.levels }}

{{ result.decisions }}

{{ result.notes }}
{% if result.nodes %}
{{ result.nodes }}
{% endif %}
{%- endfor %}
{%- if not results %}
No results of this model as it is were recorded when this card was written.
{% endif %}
{%- for picture in pictures %}
![{{ picture.alt }}]({{ picture.file }})
{% endfor %}
## Decisions

{{ decisions }}

## Limits

{{ limits }}

## Licence

{{ licence }}

## Citation

The method:

```bibtex
@inproceedings{jiang2025hcal,
  title = {Hierarchy-Consistent Learning and Adaptive Loss Balancing for Hierarchical Multi-Label Classification},
  author = {Jiang, Ruobing and Liu, Mengzhe and Liu, Haobing and Yu, Yanwei},
  booktitle = {Proceedings of the 34th ACM International Conference on Information and Knowledge Management},
  year = {2025},
  doi = {10.1145/3746252.3761241},
  url = {https://arxiv.org/abs/2508.13452}
}
```

The software: `hcal_hf` {{ version }}.
"""

__all__ = ["TEMPLATE"]
