PYTHON ?= python3
PY = .venv/bin/python
DEMO = work_dirs/demo
export PYTHONUNBUFFERED = 1

.PHONY: help setup demo test

help:
	@echo "make demo   set up, train RetinaNet with CMT-Ti on drawn scenes, evaluate, draw"
	@echo "make test   set up, run the tests"

setup:
	@$(PYTHON) tools/setup_env.py

test: setup
	$(PY) -m pytest

demo: setup
	$(PY) tools/make_shapes.py $(DEMO)/shapes --images 800 --val 100 --seed 0 --size 160x128
	rm -rf $(DEMO)/retinanet_cmt_ti
	PYTHON=$(PY) tools/dist_train.sh configs/mmdet/retinanet_cmt_ti_shapes.py 2 \
		--work-dir $(DEMO)/retinanet_cmt_ti
	PYTHON=$(PY) tools/dist_test.sh configs/mmdet/retinanet_cmt_ti_shapes.py \
		$$(cat $(DEMO)/retinanet_cmt_ti/last_checkpoint) 2 \
		--work-dir $(DEMO)/retinanet_cmt_ti/test --out $(DEMO)/predictions.pkl
	$(PY) tools/draw_detections.py configs/mmdet/retinanet_cmt_ti_shapes.py \
		$(DEMO)/predictions.pkl --out $(DEMO)/detections
	$(PY) tools/plot_training.py $(DEMO)/retinanet_cmt_ti --out $(DEMO)/curves.png
	@echo "==> $(DEMO)/detections/sheet.png: detections beside truth; $(DEMO)/curves.png: loss and mAP"
